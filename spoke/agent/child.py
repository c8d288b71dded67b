"""The keeper's child between fork and exec: everything that an actor's process begins with is put in its place."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import signal
from typing import Any, NoReturn

from spoke.agent import procfs

DOCUMENT_FD = 3
STATUS_FD = 4
STATUS_BYTES_MAX = 16 * 1024
_DEFAULTED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD, signal.SIGPIPE)


def fork(spec: dict[str, Any], document_fd: int, log: int, status: int) -> int:
    """Start an actor's process; its id. ``log`` and ``status`` are the ends of the pipes that it writes into."""
    keeper = os.getpid()
    # Signals wait until the child has shed the keeper's handlers, which would swallow them.
    former = signal.pthread_sigmask(signal.SIG_BLOCK, _DEFAULTED)
    try:
        pid = os.fork()
        if pid == 0:
            _become(spec, document_fd, log, status, keeper)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)
    return pid


def _become(spec: dict[str, Any], document_fd: int, log: int, status: int, keeper: int) -> NoReturn:
    """In the child: put everything in its place and exec. Whatever goes wrong is written to the status pipe."""
    words = "its process cannot be set up"
    try:
        os.setsid()
        procfs.signal_at_parent_death(signal.SIGKILL)
        if os.getppid() != keeper:  # it died before the line above
            os._exit(127)
        signal.set_wakeup_fd(-1)
        for number in (*_DEFAULTED, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        document_fd, log, status = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64) for fd in (document_fd, log, status))
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if not spec["is_command"]:
            os.dup2(document_fd, DOCUMENT_FD)
            os.dup2(status, STATUS_FD)
        words = f"its working directory {spec['cwd']!r} cannot be entered"
        os.chdir(spec["cwd"])
        argv = spec["argv"]
        for name, value in spec.get("rlimits", {}).items():
            words = f"its limit {name} cannot be set to {value}"
            kind, most = getattr(resource, f"RLIMIT_{name.upper()}"), resource.RLIM_INFINITY if value == -1 else value
            if resource.getrlimit(kind) != (most, most):
                resource.setrlimit(kind, (most, most))
        words = f"the command {argv[0]!r} cannot be run"
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.execvpe(argv[0], argv, spec["env"])
    except BaseException as error:
        if isinstance(error, FileNotFoundError) and words.startswith("the command"):
            path = spec["env"].get("PATH", "")
            words = f"the command {spec['argv'][0]!r} was not found (working directory {spec['cwd']}, PATH {path})"
        why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else repr(error)
        if isinstance(error, (OSError, ValueError)) and words.startswith("its limit"):
            why = "more than the agent itself may have, or more than this machine allows (see `ulimit -H -a` there)"
        with contextlib.suppress(OSError):
            os.write(status, f"!{words}: {why}\n".encode(errors="replace")[:STATUS_BYTES_MAX])
    finally:
        os._exit(127)
