"""What may serve as a name in keys, file names and logs. Apart from the model, since every actor's start imports it."""

from __future__ import annotations

import re

from spoke.errors import InvalidRequest

NAME_LENGTH_MAX = 200

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+-]*\Z")


def check_name(what: str, value: str) -> str:
    """Return ``value`` if it can serve as a name in keys, file names and logs; else raise InvalidRequest."""
    if not isinstance(value, str):
        raise InvalidRequest(f"{what} must be text, not {type(value).__name__}")
    if len(value) > NAME_LENGTH_MAX:
        raise InvalidRequest(
            f"{what} is {len(value)} characters long; at most {NAME_LENGTH_MAX} are allowed: choose a shorter one"
        )
    if not _NAME.match(value):
        raise InvalidRequest(
            f"{what} {value!r} is not a usable name: start with a letter or digit, then letters, digits and . _ : @ + -"
        )
    return value
