"""The actor of the storm; agents import this module."""

import subprocess

import spoke
from tests.chaos.storm.gpus import hold, note


@spoke.register_actor("Worker")
class Worker(spoke.Actor):
    """Holds its GPUs, and writes down each call that it executes."""

    def __init__(self) -> None:
        self.held = hold()

    def work(self, token: str) -> str:
        note("executed", token)
        return f"done {token}"

    def grandchild(self) -> int:
        return subprocess.Popen(["sleep", "600"], start_new_session=True).pid
