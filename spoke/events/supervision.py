"""How an agent looks after an actor: when it starts it again, how it knows that it lives, what it runs at its end."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

from spoke.errors import InvalidRequest

RestartPolicy = Literal["on_failure", "gang"]
SECONDS_MAX: Final = 7 * 24 * 3600.0
RESTARTS_MAX: Final = 1_000_000
ARGV_CHARACTERS_MAX: Final = 64 * 1024
RLIMITS: Final = ("as", "core", "cpu", "data", "fsize", "memlock", "nofile", "nproc", "stack")
"""What can be limited, by the names of ``setrlimit`` without RLIMIT_."""
UNLIMITED: Final = -1
NOFILE_MIN: Final = 128
"""With fewer descriptors no actor comes up."""


@dataclass(frozen=True, slots=True)
class Restart:
    """What follows when an actor fails: it exits with a code that is not 0, is killed, hangs, or does not come up.

    ``on_failure``: its agent starts it again. ``gang``: all members of the gang with this policy are stopped, and when
    the last has ended all of them are started again, in the same places. At most ``max_restarts`` times; the count
    begins anew once an actor has run for ``window_s`` seconds (0: never). Before the first restart of a count it waits
    ``backoff_s``, before each later one twice as long, at most ``backoff_max_s``, less up to half of that by chance.

    >>> spoke.Restart("on_failure", max_restarts=5, backoff_s=1.0).policy
    'on_failure'
    """

    policy: RestartPolicy = "on_failure"
    max_restarts: int = 3
    backoff_s: float = 1.0
    backoff_max_s: float = 60.0
    window_s: float = 600.0

    def __post_init__(self) -> None:
        if self.policy not in get_args(RestartPolicy):
            raise InvalidRequest(
                f"the restart policy {self.policy!r:.50} was asked for; there are never, on_failure, gang"
            )
        if type(self.max_restarts) is not int or not 0 <= self.max_restarts <= RESTARTS_MAX:
            raise InvalidRequest(
                f"max_restarts must be a whole number from 0 to {RESTARTS_MAX}, not {self.max_restarts!r}"
            )
        for name in ("backoff_s", "backoff_max_s", "window_s"):
            check_seconds(name, getattr(self, name), 0.0)
        if self.backoff_s > self.backoff_max_s:
            raise InvalidRequest(
                f"backoff_s ({self.backoff_s:g}) must not be above backoff_max_s ({self.backoff_max_s:g})"
            )

    def delay_s(self, count: int, token: str) -> float:
        """How long to wait before the ``count``-th restart (from 1 on); ``token`` stands for the dice.

        >>> 1.0 <= spoke.Restart(backoff_s=2.0).delay_s(1, "any text") <= 2.0
        True
        """
        doubled = self.backoff_s * 2.0 ** min(count - 1, 60)
        by_chance = zlib.crc32(f"{token}/{count}".encode()) / 2**32
        return round(min(doubled, self.backoff_max_s) * (1.0 - by_chance / 2), 3)


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """How an agent finds out that an actor hangs: every ``interval_s`` it asks, and waits ``timeout_s`` for an answer.

    A registered type is asked on its control socket: it answers as long as Python runs in it, and with its method
    ``healthy``, if it has one of its own. For a command ``argv`` is run, in its environment, and must exit with code 0;
    such a command is up when that has succeeded for the first time. After ``failures`` in a row the actor is killed,
    and that is a failure.

    >>> care = spoke.Supervision(health=spoke.HealthCheck(interval_s=5.0, failures=2))
    >>> actors = gang.launch("Worker", supervision=care).result()
    """

    interval_s: float = 10.0
    timeout_s: float = 5.0
    failures: int = 3
    argv: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_seconds("the health check's interval_s", self.interval_s, 0.05)
        check_seconds("the health check's timeout_s", self.timeout_s, 0.05)
        if type(self.failures) is not int or not 1 <= self.failures <= 1_000:
            raise InvalidRequest(f"the health check's failures must be from 1 to 1000, not {self.failures!r}")
        object.__setattr__(self, "argv", check_argv("the health check", self.argv) if self.argv else ())


@dataclass(frozen=True, slots=True)
class ExitHook:
    """A command that is run on the actor's node when an actor has ended, each time; it is killed after ``timeout_s``.

    It runs in the actor's environment and directory; besides, SPOKE_EXIT_CODE, SPOKE_EXIT_SIGNAL (0: none),
    SPOKE_EXIT_REASON and SPOKE_RESTART_COUNT say what happened. Its GPUs stay its own until the hook is over. It
    is not run when everything must end at once: the node's lease is lost, or its agent dies.

    >>> care = spoke.Supervision(exit_hook=spoke.ExitHook(["sh", "-c", "echo $SPOKE_EXIT_CODE > exit.txt"]))
    >>> care.exit_hook.timeout_s
    30.0
    """

    argv: Sequence[str]
    timeout_s: float = 30.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "argv", check_argv("the exit hook", self.argv))
        check_seconds("the exit hook's timeout_s", self.timeout_s, 0.05)


@dataclass(frozen=True, slots=True)
class Supervision:
    """How an actor is looked after; see its parts.

    ``start_timeout_s``: it must be up by then, else it is killed and has failed (0: what its agent is set to).
    ``rlimits``: limits of its process by name (``nofile``, ``core``, ``memlock``, ``as``, …), bytes or numbers; -1 is
    no limit.

    >>> care = spoke.Supervision(restart=spoke.Restart(max_restarts=1, backoff_s=0.1), rlimits={"core": 0})
    >>> actors = gang.launch_command(["false"], supervision=care).result()
    >>> [end.code for end in gang.wait().result()]
    [1, 1]
    """

    restart: Restart | None = None
    start_timeout_s: float = 0.0
    health: HealthCheck | None = None
    exit_hook: ExitHook | None = None
    rlimits: Mapping[str, int] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.start_timeout_s:
            check_seconds("start_timeout_s", self.start_timeout_s, 0.05)
        for what, part, kind in (
            ("restart", self.restart, Restart),
            ("health", self.health, HealthCheck),
            ("exit_hook", self.exit_hook, ExitHook),
        ):
            if part is not None and not isinstance(part, kind):
                raise InvalidRequest(f"{what} must be a spoke.{kind.__name__}, not {part!r:.100}")
        if not isinstance(self.rlimits, Mapping):
            raise InvalidRequest(f'rlimits must be a dict, like {{"nofile": 65536}}, not {self.rlimits!r:.100}')
        for name, value in self.rlimits.items():
            if name not in RLIMITS:
                raise InvalidRequest(f"there is no limit {name!r:.50}; there are {', '.join(RLIMITS)}")
            if type(value) is not int or not (value == UNLIMITED or 0 <= value < 2**63):
                raise InvalidRequest(
                    f"the limit {name} must be a whole number from 0 on, or -1 for none, not {value!r}"
                )
        if 0 <= self.rlimits.get("nofile", NOFILE_MIN) < NOFILE_MIN:
            raise InvalidRequest(f"the limit nofile must be at least {NOFILE_MIN}, not {self.rlimits['nofile']}")


def check_seconds(what: str, value: float, at_least: float) -> None:
    """Raise InvalidRequest for what is no number of seconds in this range."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not at_least <= value <= SECONDS_MAX:
        raise InvalidRequest(f"{what} must be from {at_least:g} to {SECONDS_MAX:g} seconds, not {value!r}")


def check_argv(what: str, argv: Sequence[str]) -> tuple[str, ...]:
    """The command's words; raises InvalidRequest for what is no command."""
    if isinstance(argv, str) or not argv or not all(isinstance(word, str) for word in argv) or not argv[0]:
        raise InvalidRequest(
            f"{what} needs a command: a list of words, like ['curl', '-f', 'localhost'], not {argv!r:.100}"
        )
    if any("\0" in word for word in argv) or sum(map(len, argv)) > ARGV_CHARACTERS_MAX:
        raise InvalidRequest(f"{what}'s command holds a NUL character, or more than {ARGV_CHARACTERS_MAX} characters")
    return tuple(argv)


NONE: Final = Supervision()
"""Nothing special."""
