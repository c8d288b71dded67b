"""``spoke.Client``: the pool, for programs with threads."""

from __future__ import annotations

import weakref

from spoke.client.bound import Bound
from spoke.client.checks import TIMEOUT_S_MAX, check_seconds
from spoke.client.session import Session
from spoke.client.status import PoolStatus, read_status
from spoke.client.sync.launches import Launches
from spoke.client.sync.operations import Operations
from spoke.client.sync.queue import QueueOperations
from spoke.errors import InvalidRequest
from spoke.events.model import check_name
from spoke.events.resources import check_count
from spoke.protocol.identity import Key, find_key
from spoke.protocol.server import explained
from spoke.protocol.url import mask_url, resolve_pool, resolve_url
from spoke.transport.choice import Choice
from spoke.transport.closing import Closing

LEASE_S_MIN, LEASE_S_MAX = 0.5, 24 * 3600.0
CLOSE_TIMEOUT_S = 5.0


class Client(QueueOperations, Operations, Launches, Closing, Bound):
    """A session in a pool: asks for gangs, launches actors, and gives everything back when it ends.

    ``url`` (redis://, rediss://, unix://; else SPOKE_URL, else redis://127.0.0.1:6379) and ``pool`` (else SPOKE_POOL,
    else ``default``) say where. The methods may be called from any thread. Those that return a future return at once,
    but for the time it takes to hand the request to the server.

    ``lease_s``: when this process dies without a word, its tickets are released after this many seconds.
    ``retry_s``: for how long a request is sent again when the server cannot be reached, before its future fails with
    ServerUnreachable. ``allocator_timeout_s``: after how many seconds without an allocator in the pool futures fail
    with NoAllocator. ``outstanding_max``: how many requests may wait for their answer; one more raises LimitExceeded.
    ``key`` (else SPOKE_KEY, else the content of the file SPOKE_KEY_FILE) signs the requests, in pools that ask for it.
    ``project``: whom its gangs count for in quotas and fair shares (else the user).
    ``transport`` carries the calls to actors: ``"tcp"``, ``"shm"`` or ``"rdma"`` (else SPOKE_TRANSPORT, else the best
    that works with each actor).

    Raises InvalidRequest, ServerUnreachable, AuthenticationFailed or ServerUnsuitable. Once the lease is lost, every
    method raises LeaseLost; after ``close()`` and in a forked child, ClientClosed.

    >>> with spoke.Client() as client:  # SPOKE_URL and SPOKE_POOL say where
    ...     gang = client.gang_allocate(2, 1, spoke.Resources(gpus=1)).result()
    ...     [slot.node_id for slot in gang]
    ['node-0', 'node-1']
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        pool: str | None = None,
        lease_s: float = 10.0,
        retry_s: float = 30.0,
        allocator_timeout_s: float = 10.0,
        outstanding_max: int = 10_000,
        transport: str | None = None,
        key: str | None = None,
        project: str = "",
        _direct: bool = True,
    ) -> None:
        check_seconds("lease_s", lease_s, LEASE_S_MIN, LEASE_S_MAX)
        check_seconds("retry_s", retry_s, 0.0, TIMEOUT_S_MAX)
        check_seconds("allocator_timeout_s", allocator_timeout_s, 0.1, TIMEOUT_S_MAX)
        check_count("outstanding_max", outstanding_max, 1, 2**31)
        if project != "":
            check_name("the project", project)
        forced = Choice(transport).forced
        session = Session(
            resolve_url(url),
            resolve_pool(pool),
            lease_s=lease_s,
            retry_s=retry_s,
            allocator_timeout_s=allocator_timeout_s,
            outstanding_max=outstanding_max,
            direct=_direct,
            key=_user_key(key),
            project=project,
        )
        session.open()
        super().__init__(session, forced)
        self._finalizer = weakref.finalize(self, _close_later, session)
        self._finalizer.atexit = False  # the session is closed at exit by itself, while its threads still run

    def status(self) -> PoolStatus:
        """The pool's nodes and tickets, read from its views (no request to the allocator). Raises ServerError.

        >>> [(node.node_id, node.gpus) for node in client.status().nodes]
        [('node-0', 4), ('node-1', 4)]
        """
        self.session.check_open()
        with explained(self.session.url):
            return read_status(self.session.redis, self.session.keys)

    def close(self, timeout: float = CLOSE_TIMEOUT_S) -> None:
        """End the session: tickets are released (not detached ones), waiting futures fail with ClientClosed.

        Returns when the allocator has taken note, at the latest after ``timeout`` seconds and a little.

        >>> client = spoke.Client()
        >>> client.close()
        >>> client.is_open
        False
        """
        check_seconds("timeout", timeout, 0.0, TIMEOUT_S_MAX)
        self._finalizer.detach()
        self.session.close(timeout)

    @property
    def url(self) -> str:
        """The server's URL, without its password.

        >>> client.url
        'redis://127.0.0.1:...'
        """
        return mask_url(self.session.url)

    @property
    def pool(self) -> str:
        """The pool's name.

        >>> client.pool
        'docs'
        """
        return self.session.keys.pool

    @property
    def client_id(self) -> str:
        """The id of this session in the log and in the views.

        >>> client.client_id
        'c-...'
        """
        return self.session.client_id

    @property
    def is_open(self) -> bool:
        """Whether requests can be made.

        >>> client.is_open
        True
        """
        return self.session.is_over is None

    def __repr__(self) -> str:
        return f"<Client {self.client_id} of pool {self.pool!r} at {self.url}>"


def _close_later(session: Session) -> None:
    if not session.forked:
        session.upkeep.soon(lambda: session.close(CLOSE_TIMEOUT_S))


def _user_key(given: str | None) -> Key | None:
    key = find_key(given)
    if key is not None and key.signer.kind == "node":
        raise InvalidRequest(f"the key is {key.signer}'s, an agent's: a client needs one of a user or administrator")
    return key
