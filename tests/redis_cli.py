"""A stand-in for redis-cli where none is installed: takes the same words, and prints what redis-cli prints.

As a program: ``python -m tests.redis_cli -p PORT [-h HOST] [--user NAME] [--no-raw] COMMAND...``; the password comes
from REDISCLI_AUTH.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

from redis.connection import Connection
from redis.exceptions import ResponseError


def raw(answer: Any) -> str:
    """As into a pipe: a value a line, whatever the nesting."""
    if isinstance(answer, list):
        return "\n".join(raw(one) for one in answer)
    return _text(answer)


def formatted(answer: Any, indent: str = "") -> str:
    """As at a terminal: strings in quotes, lists numbered."""
    match answer:
        case None:
            return "(nil)"
        case int():
            return f"(integer) {answer}"
        case []:
            return "(empty array)"
        case list():
            width = len(str(len(answer)))
            lines = []
            for number, one in enumerate(answer, 1):
                head = f"{number:>{width}}) "
                lines.append(("" if number == 1 else indent) + head + formatted(one, indent + " " * len(head)))
            return "\n".join(lines)
        case ResponseError():
            return f"(error) {answer}"
        case _:
            return _quoted(_text(answer))


def _text(answer: Any) -> str:
    if answer is None:
        return ""
    return answer.decode(errors="backslashreplace") if isinstance(answer, bytes) else str(answer)


def _quoted(text: str) -> str:
    for char, spelled in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t")):
        text = text.replace(char, spelled)
    return f'"{text}"'


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("-h", dest="host", default="127.0.0.1")
    parser.add_argument("-p", dest="port", type=int, default=6379)
    parser.add_argument("--user")
    parser.add_argument("--no-raw", action="store_true")
    parser.add_argument("words", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    password = os.environ.get("REDISCLI_AUTH")
    connection = Connection(host=given.host, port=given.port, username=given.user, password=password, protocol=2)
    connection.connect()
    connection.send_command(*given.words)
    try:
        answer: Any = connection.read_response()
    except ResponseError as error:
        answer = error
    print(formatted(answer) if given.no_raw else raw(answer))
    connection.disconnect()


if __name__ == "__main__":
    main()
