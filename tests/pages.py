"""Walks a page of the manual as a reader does: writes its files, types its commands, and looks at what they say.

What a page is made of:

- a block whose title is a file's name is that file;
- in a ``console`` block, lines after ``$`` are typed, into the terminal that the title names, or the first
  one. Lines that end with a backslash, and here-documents, go on. ``^C`` is typed as a reader would;
- the other lines are what is printed: each must be there, whatever else is; ``…`` stands for anything, and blanks count
  as one;
- a command must end with code 0, within a time limit. One that goes on (``spoke up``, ``tail -f``, ``… &``) has said
  what the page says of it before the next is typed;
- a command that only looks (``spoke log``, ``spoke nodes``) is typed again until it says so: views are a moment behind.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.marks import MARK, marked

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^( *)```(\w+)(?: title=\"([^\"]*)\")?\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"[\w./-]+\.\w+")
GOES_ON = re.compile(
    r"(^|\s)(spoke (up|allocator|agent|top|web)|redis-server|redis-sentinel)\b(?!.*--help)"
    r"|^(tail|spoke)\b.*\s(-f|--follow)\b|&\s*(#.*)?$"
)
LOOKS = re.compile(
    r"^(kubectl .* -- )?spoke (log|nodes|tickets|status|explain|queue show|audit (verify|replay|history|usage))\b"
)
SHOWN_URL = "redis://127.0.0.1:6379"
UP = re.compile(r"Spoke is up at (\S+),")
LIMIT_S, STOP_S, LOOK_EVERY_S = 90.0, 20.0, 0.05


@dataclass(frozen=True)
class Block:
    """A block of code in a page."""

    kind: str
    title: str
    text: str

    def commands(self) -> Iterator[tuple[str, list[str]]]:
        """What is typed, and what is printed then."""
        typed, printed, until = "", list[str](), ""
        for line in self.text.splitlines():
            if until or typed.endswith("\\\n"):
                typed += line + "\n"
                until = "" if line == until else until
            elif line.startswith("$ ") or line == "^C":
                if typed:
                    yield typed, printed
                typed, printed = line.removeprefix("$ ") + "\n", []
                found = re.search(r"<<-?\s*'?(\w+)'?", line)
                until = found[1] if found else ""
            elif line.strip() not in {"", "…"}:
                printed.append(line)
        if typed:
            yield typed, printed


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, in order."""
    found = BLOCK.findall(page.read_text())
    return [
        Block(kind, title, re.sub(f"^{indent}", "", text, flags=re.MULTILINE)) for indent, kind, title, text in found
    ]


class Terminal:
    """A shell that reads one command after another."""

    def __init__(self, directory: Path, env: Mapping[str, str], out: Path) -> None:
        self.out = out
        with open(out, "wb") as file:
            self.shell = subprocess.Popen(
                ["env", "--default-signal=INT", "bash", "--noprofile", "--norc"],  # else ignored in a background job
                cwd=directory,
                env=dict(env),
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.typed = 0
        self.goes_on = ""

    def type(self, command: str) -> int:
        """Send a command; where its output begins."""
        begin = self.out.stat().st_size
        self.typed += 1
        assert self.shell.stdin is not None
        self.shell.stdin.write(f"{{ {command}}} < /dev/null; printf '\\n\\036{self.typed} %s\\n' $?\n".encode())
        self.shell.stdin.flush()
        return begin

    def said(self, begin: int = 0) -> str:
        return self.out.read_bytes()[begin:].decode(errors="replace")

    def code(self) -> int | None:
        """The last command's exit code, when it has ended."""
        found = re.search(rf"\036{self.typed} (\d+)", self.said())
        return int(found[1]) if found else None

    def interrupt(self) -> None:
        """Ctrl-C."""
        for child in psutil.Process(self.shell.pid).children():
            child.send_signal(signal.SIGINT)

    def close(self) -> None:
        """End the shell and what runs in it, in order at first."""
        self.shell.kill()
        self.shell.wait()
        if self.shell.stdin:
            self.shell.stdin.close()
        with contextlib.suppress(ProcessLookupError):  # when its group is empty
            for number in (signal.SIGTERM, signal.SIGKILL):
                os.killpg(self.shell.pid, number)
                deadline_s = time.monotonic() + STOP_S
                while time.monotonic() < deadline_s:
                    os.killpg(self.shell.pid, 0)
                    time.sleep(LOOK_EVERY_S)


class Walk:
    """Terminals in one directory.

    ``stand_ins`` says what is typed in place of something that only the reader has, ``variables`` what is in the
    environment, and ``before`` what happens elsewhere before a command that begins so is typed.
    """

    def __init__(
        self,
        directory: Path,
        stand_ins: Mapping[str, str] | None = None,
        *,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.directory, self.home, self.programs = directory / "work", directory / "home", directory / "bin"
        self.work_out = directory / "terminals"
        for one in (self.directory, self.home, self.programs, self.work_out):
            one.mkdir(parents=True)
        self.stand_ins = dict(stand_ins or {})
        self.variables = dict(variables or {})
        self.before: dict[str, Callable[[], object]] = {}
        self.mark = uuid.uuid4().hex
        self.terminals: dict[str, Terminal] = {}

    @property
    def env(self) -> dict[str, str]:
        """The environment of somebody who has nothing of Spoke yet, but for the programs."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(("SPOKE_", "XDG_", "VIRTUAL_"))}
        path = f"{self.programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        theirs = {"PATH": path, "HOME": str(self.home), "XDG_RUNTIME_DIR": str(self.home / "run"), "COLUMNS": "200"}
        return {**own, **theirs, **self.variables, MARK: self.mark}

    def __enter__(self) -> Walk:
        return self

    def __exit__(self, *error: object) -> None:
        for terminal in reversed(self.terminals.values()):
            terminal.close()
        _, left = psutil.wait_procs(marked(self.mark), STOP_S)
        for process in left:
            process.kill()
        assert error[0] or not left, f"left over: {left}"

    def walk(self, page: Path, *, without: str = "") -> list[str]:
        """All of a page, but for the commands that begin with ``without``; what was typed."""
        typed = []
        for block in blocks(page):
            if block.kind != "console" and FILE.fullmatch(block.title):
                path = self.directory / self._meant(block.title)
                assert path.resolve().is_relative_to(self.directory.parent), path
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(self._meant(block.text))
            elif block.kind == "console":
                for command, printed in block.commands():
                    if not (without and command.startswith(without)):
                        for begin, happens in self.before.items():
                            if command.startswith(begin):
                                happens()
                        self.run(command, printed, block.title)
                        typed.append(command)
        return typed

    def program(self, name: str, target: str) -> None:
        """A program that the reader has by this name."""
        (self.programs / name).symlink_to(target)

    def run(self, command: str, printed: list[str], where: str = "") -> None:
        """One command, in the terminal ``where``, which must print so much."""
        if where not in self.terminals:
            out = self.work_out / f"{len(self.terminals)}.txt"
            self.terminals[where] = Terminal(self.directory, self.env, out)
        terminal = self.terminals[where]
        if command == "^C\n":
            begin = len(terminal.said().encode())
            terminal.interrupt()
            self._until(terminal, begin, command, printed, ended=True)
            return
        assert not terminal.goes_on, f"{terminal.goes_on!r} still runs where {command!r} is to be typed"
        begin = terminal.type(self._meant(command))
        goes_on = GOES_ON.search(command) is not None
        deadline_s = time.monotonic() + LIMIT_S
        while True:
            try:
                self._until(terminal, begin, command, printed, ended=not goes_on)
            except AssertionError:
                if goes_on or not LOOKS.search(command) or time.monotonic() > deadline_s:
                    raise
                time.sleep(LOOK_EVERY_S * 4)
                begin = terminal.type(self._meant(command))
                continue
            break
        if goes_on and not command.rstrip().endswith("&"):
            terminal.goes_on = command

    def _meant(self, command: str) -> str:
        for shown, meant in self.stand_ins.items():
            command = command.replace(shown, meant)
        return command

    def _shown(self, said: str) -> str:
        if (found := UP.search(said)) is not None and found[1] != SHOWN_URL:
            self.stand_ins[SHOWN_URL] = found[1]
        for shown, meant in self.stand_ins.items():
            said = said.replace(meant, shown)
        return said

    def _until(self, terminal: Terminal, begin: int, command: str, printed: list[str], *, ended: bool) -> None:
        """Wait for what must be printed, and for the end of a command that ends; then its code must be 0."""
        deadline_s = time.monotonic() + LIMIT_S
        while True:
            code = terminal.code()  # before what was said is read, which is whole then
            said = terminal.said(begin)
            shown = self._shown(said)
            missing = [line for line in printed if not _is_in(line, shown)]
            if ended and code is not None:
                terminal.goes_on = ""
                interrupted = command == "^C\n" and code in {0, 130}
                assert code == 0 or interrupted, f"{command}ended with code {code}:\n{said}"
                assert not missing, f"{command}did not print\n{chr(10).join(missing)}\nbut\n{shown}"
                return
            if not ended and not missing:
                return
            assert ended or code is None or command.rstrip().endswith("&"), f"{command}ended:\n{said}"
            assert time.monotonic() < deadline_s, f"{command}goes on without\n{chr(10).join(missing)}:\n{said}"
            time.sleep(LOOK_EVERY_S)


def _is_in(line: str, said: str) -> bool:
    parts = [r"\s+".join(map(re.escape, part.split())) for part in line.strip().split("…")]
    return re.search(r"[^\n]*".join(parts), re.sub(r"[ \t]+", " ", said)) is not None
