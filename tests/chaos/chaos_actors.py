"""Actors for the chaos suite; agents import this file."""

import os
import subprocess
import time

import spoke


@spoke.register_actor("Sleeper")
class Sleeper(spoke.Actor):
    """Serves calls, and can leave a grandchild in a session of its own behind."""

    def pid(self) -> int:
        return os.getpid()

    def grandchild(self) -> int:
        return subprocess.Popen(["sleep", "600"], start_new_session=True).pid

    def nap(self, seconds: float) -> None:
        time.sleep(seconds)
