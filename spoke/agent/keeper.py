"""The keeper: a small process under each agent, the parent of all its actors, and the one that surely kills them.

One thread and the standard library only, so that fork is safe and quick. It is a subreaper: whatever an actor leaves
behind becomes the keeper's child. Since every living descendant has a living ancestor among the keeper's children, an
actor has ended exactly when none of the keeper's children is its own: neither its first process (the *root*), nor an
orphan with the root's session or the actor's mark. An orphan that hides both counts for every actor that may have made
it. The root is left a zombie until then, so that its pid still names its group and session, and nobody else's.

What can die, and what follows:

- the agent (also by SIGKILL): its socket closes; the keeper kills everything and exits;
- the keeper: PR_SET_PDEATHSIG kills the roots, their orphans fall to the agent, a subreaper too, which kills them;
- nobody, but the agent hangs: the keeper knows until when the node's lease is sure, and kills everything at that time;
- the scribe, which writes what actors print: the keeper starts another one; what the first was writing may be lost.

Messages are JSON datagrams (SOCK_SEQPACKET). To the keeper: ``spawn`` (with two descriptors: its specification, JSON,
and the launch document), ``stop``, ``ring``, ``kill_all``, ``lease``. From it: ``started``, ``status``, ``failed``,
``ended``, ``fenced``, and what the scribe says is ``lost``.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import socket
import sys
from collections import deque
from typing import Any

from spoke.agent import procfs
from spoke.agent.child import STATUS_BYTES_MAX, fork
from spoke.agent.clock import clock_s
from spoke.agent.datagrams import hear_all
from spoke.agent.logs.files import DIRECTORY_MODE, FILE_MODE
from spoke.agent.logs.link import ScribeLink

RING = signal.SIGRTMIN + 7
"""Says to an actor that is up: there are notices for you at the agent. It has blocked this signal and waits for it."""
FINISH_S = 5.0
"""How long an actor's end waits until its output is in its log; shorter where GPUs must be free soon."""
FINISH_SOON_S = 0.2
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_IDLE_S = 5.0
_OVERDUE_S = 0.05


class Launch:
    """One actor. ``root`` is its first process; ``exit`` is the root's (code, signal) once it is dead."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.id: str = spec["id"]
        self.mark: str = spec["env"][procfs.LAUNCH_MARK]
        self.is_command: bool = spec["is_command"]
        self.root = 0
        self.exit: tuple[int, int] | None = None
        self.status_fd = -1
        self.status = b""
        self.told = False
        self.kill_at_s: float | None = None
        self.terminated: set[int] = set()
        self.finish_by_s: float | None = None
        self.in_a_hurry = False
        self.written = False
        self.tail = ""


class Keeper:
    """The loop. ``sock`` leads to the agent, whose process id is ``agent_pid``."""

    def __init__(self, sock: socket.socket, agent_pid: int) -> None:
        self._sock = sock
        self._agent_pid = agent_pid
        self._launches: dict[str, Launch] = {}
        self._orphans: dict[int, frozenset[str]] = {}
        self._unsent: deque[bytes] = deque()
        self._lease_until_s: float | None = None
        self._wake, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGUSR1, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: None)  # a handler, not SIG_IGN: exec must not pass it on
        self._scribe = ScribeLink(os.environ.get(procfs.LAUNCH_MARK, "").removesuffix("keeper") + "scribe")
        sock.setblocking(False)

    def run(self) -> None:
        """Serve the agent until it is gone; then kill everything and return."""
        while self._turn():
            pass
        self._sock.close()
        self._launches.clear()
        while left := self._children():
            for pid in left:
                procfs.send_signal(pid, signal.SIGKILL)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            select.select([self._wake], [], [], 0.05)
            self._drain_wake()
        self._scribe.close()

    def _children(self) -> list[int]:
        """The children but for the scribe: actors, and what they left behind."""
        return [pid for pid in procfs.children() if pid != self._scribe.pid]

    def _turn(self) -> bool:
        """Wait for something to happen and deal with it; False once the agent is gone."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN | (select.POLLOUT if self._unsent else 0))
        poll.register(self._wake, select.POLLIN)
        by_fd = {launch.status_fd: launch for launch in self._launches.values() if launch.status_fd >= 0}
        for fd in by_fd:
            poll.register(fd, select.POLLIN)
        if self._scribe.fd >= 0:
            poll.register(self._scribe.fd, select.POLLIN | (select.POLLOUT if self._scribe.has_unsent else 0))
        ready = dict(poll.poll(self._wait_s() * 1000 + 1))
        if self._wake in ready:
            self._drain_wake()
            if os.getppid() != self._agent_pid:
                return False
        for fd, launch in by_fd.items():
            if fd in ready:
                self._read_status(launch)
        if self._sock.fileno() in ready and not self._read_agent():
            return False
        for message in self._scribe.hear():
            if message["is"] == "lost":
                self._unsent.append(json.dumps(message).encode())
            elif message["id"] in self._launches:
                launch = self._launches[message["id"]]
                launch.written, launch.tail = True, message["tail"]
        self._scribe.flush()
        self._scribe.revive()
        self._keep_time()
        self._settle()
        self._flush()
        return True

    def _wait_s(self) -> float:
        times = [launch.kill_at_s for launch in self._launches.values() if launch.kill_at_s is not None]
        times += [launch.finish_by_s for launch in self._launches.values() if launch.finish_by_s is not None]
        if self._lease_until_s is not None and self._launches:
            times.append(self._lease_until_s)
        if self._scribe.fd < 0:
            times.append(clock_s() + _OVERDUE_S)
        left_s = [at_s - clock_s() for at_s in times]
        return min([_IDLE_S, *(s if s > 0 else _OVERDUE_S for s in left_s)])

    def _drain_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._wake, 4096):
                pass

    # --- to and from the agent ---------------------------------------------------------------------------------------

    def _read_agent(self) -> bool:
        return hear_all(self._sock, 2, self._take)

    def _take(self, raw: bytes, fds: list[int]) -> None:
        try:
            self._obey(json.loads(raw), fds)
        finally:
            for fd in fds:
                os.close(fd)

    def _obey(self, message: dict[str, Any], fds: list[int]) -> None:
        match message["do"]:
            case "spawn":
                with open(fds[0], "rb", closefd=False) as file:
                    self._spawn(json.loads(file.read()), fds[1])
            case "stop":
                launch = self._launches.get(message["id"])
                if launch is not None:
                    self._stop(launch, message["grace_s"])
            case "ring":
                launch = self._launches.get(message["id"])
                if launch is not None and launch.told and launch.exit is None:
                    procfs.send_signal(launch.root, RING)
            case "kill_all":
                self._kill_all()
            case "lease":
                self._lease_until_s = message["until_s"]

    def _tell(self, what: str, **fields: Any) -> None:
        self._unsent.append(json.dumps({"is": what, **fields}).encode())

    def _flush(self) -> None:
        """Send what can be sent: an agent that does not read must not keep the keeper from its timers."""
        with contextlib.suppress(OSError):  # a closed socket is noticed by the reading side
            while self._unsent:
                self._sock.send(self._unsent[0])
                self._unsent.popleft()

    # --- starting ----------------------------------------------------------------------------------------------------

    def _spawn(self, spec: dict[str, Any], document_fd: int) -> None:
        launch = Launch(spec)
        if self._lease_until_s is not None and clock_s() >= self._lease_until_s:
            self._tell("failed", id=launch.id, reason="the node's lease has run out")
            self._tell("ended", id=launch.id, code=-1, signal=0, tail="")
            return
        opened: list[int] = []
        try:
            if spec["log"] == os.devnull:
                log, launch.written = os.open(os.devnull, os.O_WRONLY), True
            else:
                _check_log(spec["log"])
                log = self._scribe.open(launch.id, spec)
            opened.append(log)
            status, child_status = os.pipe()
            opened += [status, child_status]
            launch.root = fork(spec, document_fd, log, child_status)
        except OSError as error:  # no process, no memory, no descriptor, no log file
            for fd in opened:
                os.close(fd)
            self._scribe.finish(launch.id)
            self._scribe.forget(launch.id)
            self._tell("failed", id=launch.id, reason=f"its process cannot be started: {error}")
            self._tell("ended", id=launch.id, code=-1, signal=0, tail="")
            return
        os.close(log)
        os.close(child_status)
        os.set_blocking(status, False)
        launch.status_fd = status
        self._launches[launch.id] = launch

    def _read_status(self, launch: Launch) -> None:
        """Read what the actor's process says of its start: one line of JSON, or (a command's exec) the pipe's end."""
        while b"\n" not in launch.status and len(launch.status) < STATUS_BYTES_MAX:
            try:
                data = os.read(launch.status_fd, STATUS_BYTES_MAX)
            except BlockingIOError:
                return
            if not data:
                break
            launch.status += data
        self._close_status(launch)
        line = launch.status.partition(b"\n")[0].decode(errors="replace")
        if line.startswith("!"):  # written between fork and exec
            self._tell("failed", id=launch.id, reason=line[1:])
        elif line:
            self._tell("status", id=launch.id, pid=launch.root, line=line)
        elif launch.is_command:
            self._tell("started", id=launch.id, pid=launch.root)
        launch.told = bool(line) or launch.is_command

    def _close_status(self, launch: Launch) -> None:
        os.close(launch.status_fd)
        launch.status_fd = -1

    # --- ending ------------------------------------------------------------------------------------------------------

    def _stop(self, launch: Launch, grace_s: float) -> None:
        """SIGTERM to the group now, SIGKILL to everything once the grace is over."""
        deadline_s = clock_s() + grace_s
        first = launch.kill_at_s is None
        launch.kill_at_s = deadline_s if launch.kill_at_s is None else min(launch.kill_at_s, deadline_s)
        if first and grace_s > 0 and launch.exit is None:
            self._signal_group(launch, signal.SIGTERM)
            self._signal_group(launch, signal.SIGCONT)  # one that is stopped could not heed it

    def _kill_all(self) -> None:
        for launch in self._launches.values():
            launch.in_a_hurry = True
            self._stop(launch, 0.0)

    def _signal_group(self, launch: Launch, number: int) -> None:
        try:
            os.killpg(launch.root, number)
        except ProcessLookupError:  # between fork and setsid there is no such group yet
            procfs.send_signal(launch.root, number)
        except PermissionError:
            pass

    def _keep_time(self) -> None:
        now_s = clock_s()
        if self._lease_until_s is not None and now_s >= self._lease_until_s and self._launches:
            if any(launch.kill_at_s is None or launch.kill_at_s > now_s for launch in self._launches.values()):
                self._tell("fenced")
            self._kill_all()
        for launch in self._launches.values():
            if launch.kill_at_s is not None and now_s >= launch.kill_at_s and launch.exit is None:
                self._signal_group(launch, signal.SIGKILL)

    def _settle(self) -> None:
        """Reap, find out whose the orphans are, kill those that must go, and report the actors that have ended."""
        roots = {launch.root: launch for launch in self._launches.values()}
        for pid in self._children():
            root_of = roots.get(pid)
            if root_of is not None:
                self._look_at_root(root_of)
            elif self._reap(pid):
                self._orphans.pop(pid, None)
            elif pid not in self._orphans:
                self._orphans[pid] = self._owners_of(pid)
        for pid, owners in self._orphans.items():
            if not any(owner in self._launches for owner in owners):
                procfs.send_signal(pid, signal.SIGKILL)  # its actor has ended, or never was
        for launch in list(self._launches.values()):
            left = [pid for pid, owners in self._orphans.items() if launch.id in owners]
            if left and (launch.exit is not None or launch.kill_at_s is not None):
                self._end_leftovers(launch, left)
            elif not left and launch.exit is not None and self._is_written(launch):
                self._ended(launch)

    def _look_at_root(self, launch: Launch) -> None:
        if launch.exit is not None:
            return
        found = os.waitid(os.P_PID, launch.root, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if found is None:
            return
        killed = found.si_code != os.CLD_EXITED
        launch.exit = (-1, found.si_status) if killed else (found.si_status, 0)
        if launch.status_fd >= 0:
            self._read_status(launch)
        if launch.status_fd >= 0:  # a descendant of a registered class holds the pipe; nobody waits for it
            self._close_status(launch)

    def _reap(self, pid: int) -> bool:
        try:
            return os.waitpid(pid, os.WNOHANG)[0] != 0
        except ChildProcessError:
            return True

    def _owners_of(self, pid: int) -> frozenset[str]:
        session, mark = procfs.session_of(pid), procfs.mark_of(pid)
        for launch in self._launches.values():
            if session == launch.root or mark == launch.mark:
                return frozenset((launch.id,))
        return frozenset() if mark else frozenset(self._launches)

    def _end_leftovers(self, launch: Launch, left: list[int]) -> None:
        """End what is not below the root. Who was told to stop has the rest of the grace; who just ended has none."""
        if launch.kill_at_s is None or clock_s() >= launch.kill_at_s:
            self._signal_group(launch, signal.SIGKILL)
            for pid in left:
                procfs.send_signal(pid, signal.SIGKILL)
            return
        for pid in left:
            if pid not in launch.terminated:
                launch.terminated.add(pid)
                procfs.send_signal(pid, signal.SIGTERM)

    def _is_written(self, launch: Launch) -> bool:
        """Whether the output of an actor that is dead is in its log; if that takes too long, it does not matter."""
        if launch.finish_by_s is None:
            launch.finish_by_s = clock_s() + (FINISH_SOON_S if launch.in_a_hurry else FINISH_S)
            self._scribe.finish(launch.id)
        return launch.written or clock_s() >= launch.finish_by_s

    def _ended(self, launch: Launch) -> None:
        os.waitpid(launch.root, 0)  # a zombie: returns at once
        del self._launches[launch.id]
        code, number = launch.exit or (-1, signal.SIGKILL)
        self._scribe.forget(launch.id)
        tail = "" if launch.told else launch.tail
        self._tell("ended", id=launch.id, code=code, signal=number, tail=tail)


def _check_log(path: str) -> None:
    """Raise the OSError that will keep a log from being written; a full disk is no reason not to run."""
    try:
        os.makedirs(os.path.dirname(path), DIRECTORY_MODE, exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, FILE_MODE))
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise


def main(argv: list[str] | None = None) -> None:
    """Run the keeper: the arguments are the descriptor of its socket and the agent's process id."""
    fd, agent_pid = map(int, (argv or sys.argv)[1:3])
    for inherited in map(int, os.listdir("/proc/self/fd")):  # the socket, the node's lock: not for actors
        if inherited > 2:
            with contextlib.suppress(OSError):
                os.set_inheritable(inherited, False)
    procfs.become_subreaper()
    sock = socket.socket(fileno=fd)
    keeper = Keeper(sock, agent_pid)
    procfs.signal_at_parent_death(signal.SIGUSR1)
    if os.getppid() == agent_pid:
        keeper.run()


if __name__ == "__main__":
    main()
