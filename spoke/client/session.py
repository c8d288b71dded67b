"""The session: the machine behind a lock, the futures that wait, and the threads that carry out what it says.

Every change goes through ``_step``: under the lock the machine takes its input and what it wants sent is queued in
order; then, without the lock, futures are completed. Their callbacks may use the client.
"""

from __future__ import annotations

import getpass
import os
import secrets
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from threading import get_ident
from typing import Any, Protocol, TypeVar

from redis.exceptions import AuthenticationError, NoPermissionError

from spoke.client import instructions as i
from spoke.client import lifetime
from spoke.client import machine as m
from spoke.client.futures import FORKED, Pending
from spoke.client.patience import log, retried, said
from spoke.client.reader import Reader, Replies
from spoke.client.sender import Sender
from spoke.client.tracking import Ticket
from spoke.client.upkeep import Timer, Upkeep
from spoke.client.vitals import Vitals
from spoke.errors import AllocationTimeout, ClientClosed, SpokeError, WaitTimeout
from spoke.events.codec import DecodeError
from spoke.protocol import requests as r
from spoke.protocol.explanation import Explanation
from spoke.protocol.identity import Key, client_prefix
from spoke.protocol.keys import Keys
from spoke.protocol.notice import Notice
from spoke.protocol.replies import Failed, Message, Queued, decode_message
from spoke.protocol.server import check_server, connect
from spoke.protocol.version import PROTOCOL
from spoke.version import release_version

T = TypeVar("T")
BURST_S = 0.001
"""Requests closer together than this, with answers missing, are a burst: the sender's thread sends them."""
RESEND_AFTER_S = 1.0
JOIN_S = 3.0


class ToClose(Protocol):
    """What belongs to a ticket and ends with it: the connections to its actors."""

    def close(self) -> None:
        """End it."""

    def news(self, rank: int) -> None:
        """The actor of a rank has ended, or is up again. Must not wait for anything."""


class Session:
    """One client's place in a pool, from ``open`` to ``close``. Usable from any thread."""

    def __init__(
        self,
        url: str,
        pool: str,
        *,
        lease_s: float,
        retry_s: float,
        allocator_timeout_s: float,
        outstanding_max: int,
        direct: bool,
        key: Key | None = None,
        project: str = "",
    ) -> None:
        self.url = url
        self._project = project
        self.keys = Keys(pool)
        self.key = key
        self.user = key.signer.name if key is not None else ""
        self.client_id = (client_prefix(self.user) if key is not None else "c-") + secrets.token_hex(8)
        self.forked = False
        self.redis = connect(url, pool=pool)
        self._lease_s = lease_s
        self._retry_s = retry_s
        self._direct = direct
        self._lock = threading.Lock()
        self._machine = m.Machine(outstanding_max)
        self._futures: dict[int, Pending[Any]] = {}
        self._joined: dict[int, list[Pending[Any]]] = {}
        self._waits: dict[int, Pending[Any]] = {}
        self._closing: SpokeError | None = None
        self._closed = threading.Event()
        self._resend_timer: Timer | None = None
        self._hearing = 0  # the thread in which callbacks run while replies are taken in
        self._asked_while_hearing = False
        self.to_close: weakref.WeakValueDictionary[str, ToClose] = weakref.WeakValueDictionary()
        self._sender = Sender(self, url, self.keys, self.client_id, key)
        self._reader = Reader(
            url,
            self.keys,
            self.client_id,
            heard=self._hear,
            missed=lambda: self._step(lambda machine, now: machine.missed(now)),
            out_of_reach=self.out_of_reach,
            back=self._sender.renew,
        )
        self._vitals = Vitals(
            self, url, self.keys, self.client_id, lease_s=lease_s, allocator_timeout_s=allocator_timeout_s
        )
        self.upkeep = Upkeep(f"spoke-{self.client_id}")
        self._threads = (self._sender, self._reader, self._vitals, self.upkeep)

    # --- the session's life --------------------------------------------------------------------------------------

    def open(self) -> None:
        """Check the server, start the threads, ask for the session. Raises what makes the server unusable."""
        try:
            check_server(self.redis, self.url)
            asked = self._ask_for_session()
            if asked.done() and (error := asked.exception()) is not None:
                raise error
        except BaseException:
            self.redis.close()
            self._sender.close()
            raise
        lifetime.watch(self)
        for part in self._threads:
            part.start()

    def _ask_for_session(self) -> Pending[Any]:
        connect_ = r.ConnectClient(
            lease_ms=round(self._lease_s * 1000),
            host=socket.gethostname(),
            pid=os.getpid(),
            user=_user(),
            version=release_version(),
            project=self._project,
            protocol=PROTOCOL,
        )
        return self.request(connect_, lambda message, ticket: None, direct=True)

    def close(self, timeout_s: float) -> None:
        """Say goodbye, which releases what is not detached, and end the threads; within ``timeout_s`` and a little.

        Closing twice is harmless: the second caller waits for the first.
        """
        if self.forked:
            return
        with self._lock:
            first = self._closing is None
            if first:
                self._closing = ClientClosed("this client is closed: open a new one (spoke.Client(...))")
        if not first:
            if threading.current_thread() is not self.upkeep.thread:
                self._closed.wait(timeout_s + 2 * JOIN_S)
            return
        try:
            self._say_goodbye(timeout_s)
        finally:
            assert self._closing is not None
            self._step(lambda machine, now: machine.end(self._closing))  # type: ignore[arg-type]
            self._end_threads()
            lifetime.unwatch(self)
            self._closed.set()

    def _say_goodbye(self, timeout_s: float) -> None:
        with self._lock:
            machine = self._machine
            if machine.over is not None:
                return
            # Without an allocator nobody answers, but one that comes later shall not wait for the lease to run out.
            patience_s = timeout_s if machine.connected else 0.0
            goodbye: Pending[Any] = Pending(self, lambda message, ticket: None)
            goodbye.number = machine.ask(r.CloseClient(), time.monotonic())
            self._futures[goodbye.number] = goodbye
            self._sender.queue.append(goodbye.number)
        self._sender.kick(direct=True)
        try:
            goodbye.exception(patience_s)
        except TimeoutError:
            if patience_s:
                log.warning(
                    "client %s closes without the allocator's answer: its tickets are released when its lease of "
                    "%g s runs out",
                    self.client_id,
                    self._lease_s,
                )

    def _end_threads(self) -> None:
        for part in self._threads:
            part.stop()
        deadline = time.monotonic() + JOIN_S
        for part in self._threads:
            thread = part.thread
            if thread.ident is not None and thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))
        for shell in (self._sender, self._reader, self._vitals):
            if not shell.thread.is_alive():
                shell.close()
        self.redis.close()

    def check_process(self) -> None:
        """Raise ClientClosed in a forked child."""
        if self.forked:
            raise ClientClosed(FORKED)

    @property
    def is_over(self) -> SpokeError | None:
        """Why no request can be made any more, if so."""
        return ClientClosed(FORKED) if self.forked else self._closing or self._machine.over

    def check_open(self) -> None:
        """Raise why no request can be made any more, if so."""
        over = self.is_over
        if over is not None:
            raise over

    def patiently(self, work: Callable[[], T]) -> T:
        """Do what talks to the server itself, again while it is away: as long as requests are sent again."""
        return retried(work, self.url, retry_s=self._retry_s, check=self.check_open)

    # --- asking --------------------------------------------------------------------------------------------------

    def request(
        self,
        request: r.Request,
        convert: Callable[[Any, Ticket | None], T],
        *,
        blobs: bytes = b"",
        timeout_s: float | None = None,
        unwanted: Callable[[T], object] | None = None,
        direct: bool | None = None,
    ) -> Pending[T]:
        """Ask the allocator; the future's value is ``convert(message, ticket)``.

        Raises ClientClosed, LimitExceeded, and what ended the session.
        """
        future = Pending(self, convert, unwanted)
        self.check_process()
        now = time.monotonic()
        with self._lock:
            if self._closing is not None:
                raise self._closing
            machine = self._machine
            burst = bool(machine.outstanding) and now - machine.asked_at < BURST_S
            future.number = number = machine.ask(request, now, blobs)
            self._futures[number] = future
            self._sender.queue.append(number)
        try:
            if self._hearing == get_ident():  # a callback: what all of them ask goes out together
                self._asked_while_hearing = True
            else:
                self._sender.kick(direct=not burst and (self._direct if direct is None else direct))
        except BaseException:  # an interrupt: the caller gets no future, so nobody would ever give the answer back
            self.withdraw(future)
            raise
        if timeout_s is not None:
            self._limit(future, timeout_s, request.TYPE)
        return future

    def release(self, ticket_id: str, *, timeout_s: float | None = None) -> Pending[bool]:
        """Give a ticket back; joins a release that is under way already."""
        future: Pending[bool] = Pending(self, lambda message, ticket: bool(message.value))
        self.check_process()
        with self._lock:
            under_way = self._machine.release_in_progress(ticket_id)
            if under_way is not None and self._closing is None:
                future.number = under_way
                self._joined.setdefault(under_way, []).append(future)
        if under_way is None:
            return self.request(
                r.ReleaseGang(ticket_id), lambda message, ticket: bool(message.value), timeout_s=timeout_s
            )
        if timeout_s is not None:
            self._limit(future, timeout_s, r.ReleaseGang.TYPE)
        return future

    def queued(self, future: Pending[Any]) -> Queued | None:
        """What is known of the gang that a future stands for, if it waits in line."""
        with self._lock:
            one = self._machine.outstanding.get(future.number)
            mine = not future.is_wait and self._futures.get(future.number) is future
            return one.queued if one is not None and mine else None

    def explain(self, ticket_id: str) -> Pending[Explanation]:
        """Ask why a ticket waits."""
        return self.request(r.ExplainGang(ticket_id), lambda message, ticket: message.explanation)

    def ticket(self, ticket_id: str) -> Ticket | None:
        """What this client knows of a live ticket."""
        with self._lock:
            return self._machine.tickets.get(ticket_id)

    def drop(self, ticket: Ticket) -> None:
        """The last reference to a gang is gone. Called by finalizers: takes no lock, does no I/O."""
        ticket.dropped = True
        if not self.forked and self._machine.needs_drop(ticket):
            self.upkeep.soon(lambda: self._step(lambda machine, now: machine.drop(ticket, now)))

    def wait_for_exits(
        self, ticket: Ticket, ranks: list[int] | None, convert: Callable[[list[int]], T], timeout_s: float | None
    ) -> Pending[T]:
        """Wait until the actors of these ranks (None: of all that were launched) have ended."""
        self.check_process()
        with self._lock:
            chosen = list(ticket.actors) if ranks is None else ranks
            future: Pending[T] = Pending(self, lambda: convert(chosen), is_wait=True)
            future.number, outputs = self._machine.watch(ticket, chosen)
            self._waits[future.number] = future
        self._carry_out(outputs)
        if timeout_s is not None and not future.done():
            self._limit(future, timeout_s, f"the end of {len(chosen)} actor(s) of ticket {ticket.ticket_id}")
        return future

    def _limit(self, future: Pending[Any], timeout_s: float, what: str) -> None:
        def expire() -> None:
            if self._forget(future):
                future.fail(WaitTimeout(f"{what} was waited for; it did not come within {timeout_s:g} s"))

        timer = self.upkeep.later(timeout_s, expire)
        future.add_done_callback(lambda done: timer.cancel())

    def withdraw(self, future: Pending[Any]) -> None:
        """The future was cancelled."""
        if self._forget(future):
            future.set_running_or_notify_cancel()

    def _forget(self, future: Pending[Any]) -> bool:
        """Withdraw what the future stands for; False if it is being completed at this moment."""
        number = future.number
        with self._lock:
            if future.is_wait:
                found = self._waits.pop(number, None) is future
                self._machine.unwatch(number)
                return found
            joined = self._joined.get(number, [])
            if future in joined:
                joined.remove(future)
                return True
            if self._futures.get(number) is not future:
                return False
            del self._futures[number]
            outputs = self._machine.withdraw(number, time.monotonic())
            self._enqueue(outputs)
        self._carry_out(outputs)
        return True

    # --- what the shells report ----------------------------------------------------------------------------------

    def _hear(self, replies: Replies) -> None:
        messages = [message for reply in replies if (message := self._decode(*reply)) is not None]

        def take_in(machine: m.Machine, now: float) -> list[i.Instruction]:
            outputs: list[i.Instruction] = []
            for seq, message in messages:
                outputs += machine.receive(seq, message, now)
            return outputs

        self._hearing = get_ident()
        try:
            self._step(take_in)
        finally:
            self._hearing = 0
            if self._asked_while_hearing:
                self._asked_while_hearing = False
                self._sender.kick(direct=False)

    def _decode(self, seq: bytes, told: bytes) -> tuple[int, Message] | None:
        if not seq.isdigit():
            log.error("client %s was told %r, which answers nothing: %r", self.client_id, seq[:100], told[:100])
            return None
        try:
            return int(seq), decode_message(told)
        except DecodeError as error:
            log.error("the answer to request %d of client %s: %s", int(seq), self.client_id, error)
            return (int(seq), Failed(error.code, str(error))) if int(seq) else None

    def take(self, seqs: list[int]) -> list[i.Transmit]:
        """What to send of these requests."""
        with self._lock:
            return self._machine.take(seqs)

    def resend(self, fill: Callable[[Iterable[int]], None]) -> None:
        """Fill the queue anew with all that has no answer."""
        with self._lock:
            fill(self._machine.resend())

    def sending_unclear(self, seqs: list[int]) -> None:
        """The connection broke while these were sent."""
        with self._lock:
            self._machine.sending_unclear(seqs)

    def send_refused(self, refused: list[tuple[int, SpokeError]]) -> None:
        """The server refused to take these requests."""

        def take_in(machine: m.Machine, now: float) -> list[i.Instruction]:
            outputs: list[i.Instruction] = []
            for seq, error in refused:
                one = machine.outstanding.get(seq)
                if one is not None and one.internal and self._resend_timer is None:
                    self._resend_timer = self.upkeep.later(RESEND_AFTER_S, self._resend_soon)
                outputs += machine.send_refused(seq, error, now)
            return outputs

        self._step(take_in)

    def _resend_soon(self) -> None:
        self._resend_timer = None
        self._sender.renew()

    def out_of_reach(self, error: BaseException, since: float) -> None:
        """The server cannot be reached since a moment: fail what has waited long enough."""
        now = time.monotonic()
        if isinstance(error, (AuthenticationError, NoPermissionError)):  # these do not pass by themselves
            asked_before = now
        elif now - since >= self._retry_s:
            asked_before = now - self._retry_s
        else:
            return
        self.give_up(said(error, self.url), asked_before=asked_before, quick_only=False)

    def give_up(self, error: SpokeError, *, asked_before: float, quick_only: bool) -> None:
        """Fail what nobody has answered."""
        self._step(lambda machine, now: machine.give_up(error, now, asked_before=asked_before, quick_only=quick_only))

    def give_up_overdue(self) -> None:
        """Fail the allocations that are past their own time."""
        with self._lock:
            late = [self._futures.get(seq) for seq in self._machine.overdue(time.monotonic())]
        for future in late:
            if future is not None and self._forget(future):
                text = "the gang was not granted in its time, and the allocator did not say so: does one still run?"
                future.fail(AllocationTimeout(text))

    def is_connected(self) -> bool:
        """Whether the lease exists."""
        return self._machine.connected and self._machine.over is None

    def oldest_unanswered(self, *, quick_only: bool) -> float | None:
        """When the oldest request was asked that was not taken up."""
        with self._lock:
            return self._machine.oldest_unanswered(quick_only=quick_only)

    def lost(self, error: SpokeError) -> None:
        """End the session."""
        self._step(lambda machine, now: machine.end(error))

    # --- carrying out --------------------------------------------------------------------------------------------

    def _step(self, act: Callable[[m.Machine, float], list[i.Instruction]]) -> None:
        with self._lock:
            outputs = act(self._machine, time.monotonic())
            self._enqueue(outputs)
        self._carry_out(outputs)

    def _enqueue(self, outputs: list[i.Instruction]) -> None:
        for output in outputs:
            if type(output) is i.Transmit:
                self._sender.queue.append(output.seq)

    def _carry_out(self, outputs: list[i.Instruction]) -> None:
        sends = False
        for output in outputs:
            if type(output) is i.Resolve:
                future = self._futures.pop(output.seq, None)
                if future is not None:
                    future.fulfil(output.message, output.ticket)
                for joined in self._joined.pop(output.seq, ()):
                    joined.fulfil(output.message, output.ticket)
            elif type(output) is i.Fail:
                self._fail(output)
            elif type(output) is i.Transmit:
                sends = True
            elif type(output) is i.WaitOver:
                wait = self._waits.pop(output.wait_id, None)
                if wait is not None:
                    wait.fulfil()
            elif type(output) is i.WaitFailed:
                wait = self._waits.pop(output.wait_id, None)
                if wait is not None:
                    wait.fail(output.error)
            elif type(output) is i.Noticed:
                self._tell(output.ticket, output.notice)
            elif type(output) is i.ActorChanged:
                connected = self.to_close.get(output.ticket.ticket_id)
                if connected is not None:
                    connected.news(output.rank)
            elif type(output) is i.TicketGone:
                ended = self.to_close.pop(output.ticket.ticket_id, None)
                if ended is not None:
                    self.upkeep.soon(ended.close)
            elif type(output) is i.Lost and self._closing is None:
                log.error("client %s has lost its session: %s", self.client_id, output.error)
        if sends:
            self._sender.kick(direct=False)

    def _tell(self, ticket: Ticket, notice: Notice) -> None:
        """Tell the user, in a thread that may be kept waiting; nobody listens: in the log at least."""
        if not ticket.on_notice:
            log.warning("client %s, ticket %s: %s", self.client_id, ticket.ticket_id, notice.reason)
        for tell in ticket.on_notice:
            self.upkeep.soon(lambda tell=tell: tell(notice))  # type: ignore[misc]

    def _fail(self, output: i.Fail) -> None:
        future = self._futures.pop(output.seq, None)
        if future is not None:
            future.fail(output.error)
        for joined in self._joined.pop(output.seq, ()):
            joined.fail(output.error)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user without a name
        return str(os.getuid())
