"""Two sides agree on a transport, whatever fails on the way, and nothing that was made for one that failed is left."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoke.errors import InvalidRequest, MalformedData, SpokeError, TransportUnavailable
from spoke.transport.carrier import Acceptance, Carrier, Offer, Params, Transport, Unavailable, Wire
from spoke.transport.choice import NAMES, Choice, better_than
from spoke.transport.endpoint import Endpoint
from spoke.transport.negotiate import MESSAGE_BYTES_MAX, ROUNDS_MAX, ClientNegotiation, ServerNegotiation, encode
from spoke.transport.tcp import TcpEndpoint

LIMIT = 1 << 20
STEPS = ("offer", "accept", "complete")
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats()
    | st.text(max_size=9)
    | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)


class Fake(Carrier):
    """A carrier that fails at a step, and counts what is not freed."""

    def __init__(self, name: str, fails_at: str = "") -> None:
        self.name = name  # type: ignore[misc]
        self.fails_at = fails_at
        self.held = 0

    def fail_at(self, step: str) -> None:
        if step == self.fails_at:
            raise Unavailable(f"{step} does not work")

    def offer(self, wire: Wire) -> Offer:
        self.fail_at("offer")
        return FakeOffer(self, wire)

    def accept(self, params: Params, wire: Wire) -> Acceptance:
        if params != {"from": "client"}:
            raise MalformedData("not mine")
        self.fail_at("accept")
        return FakeAcceptance(self, wire)

    def endpoint(self, wire: Wire) -> Endpoint:
        kind = type("FakeEndpoint", (TcpEndpoint,), {"transport": self.name})
        made: Endpoint = kind(wire.sock, wire.peer, limit_bytes=wire.limit_bytes)
        return made


class FakeOffer(Offer):
    def __init__(self, carrier: Fake, wire: Wire) -> None:
        self.params = {"from": "client"}
        self.carrier, self.wire = carrier, wire
        carrier.held += 1

    def complete(self, answer: Params, deadline: float) -> Endpoint:
        assert answer == {"from": "server"}
        assert deadline > time.monotonic()
        self.carrier.fail_at("complete")
        return self.carrier.endpoint(self.wire)

    def close(self) -> None:
        self.carrier.held -= 1


class FakeAcceptance(Acceptance):
    def __init__(self, carrier: Fake, wire: Wire) -> None:
        self.answer = {"from": "server"}
        self.carrier, self.wire = carrier, wire
        carrier.held += 1

    def endpoint(self) -> Endpoint:
        self.carrier.held -= 1
        return self.carrier.endpoint(self.wire)

    def close(self) -> None:
        self.carrier.held -= 1


class Fakes(Choice):
    def __init__(self, wanted: str | None = None, **fails_at: str) -> None:
        super().__init__(wanted)
        self.fakes = {name: Fake(name, fails_at.get(name, "")) for name in NAMES}

    def carrier(self, name: str) -> Carrier:
        if name in self.excluded:
            return super().carrier(name)
        return self.fakes[name]

    @property
    def held(self) -> int:
        return sum(fake.held for fake in self.fakes.values())


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        a = socket.create_connection(listener.getsockname())
        b, _ = listener.accept()
    with a, b:
        yield a, b


def serve(sock: socket.socket, negotiation: ServerNegotiation) -> None:
    """What the door does, in a straight line."""
    sock.settimeout(10)
    try:
        while negotiation.endpoint is None:
            data = sock.recv(negotiation.wanted)
            if not data:
                break
            if answer := negotiation.feed(data):
                sock.sendall(answer)
    except SpokeError:
        sock.shutdown(socket.SHUT_RDWR)
    finally:
        negotiation.close()


def meet(pair: tuple[socket.socket, socket.socket], client: Choice, server: Choice) -> tuple[Endpoint, Endpoint]:
    """The endpoints of both sides."""
    ours, theirs = (Wire(sock, "peer", LIMIT) for sock in pair)
    accepting = ServerNegotiation(theirs, server)
    thread = threading.Thread(target=serve, args=(theirs.sock, accepting))
    thread.start()
    try:
        deadline = time.monotonic() + 10
        sock = ours.sock
        asking = ClientNegotiation(ours, client, lambda n: sock.recv(n, socket.MSG_WAITALL), deadline)
        endpoint = asking.run()
    except BaseException:
        pair[0].shutdown(socket.SHUT_RDWR)
        raise
    finally:
        thread.join(10)
    assert accepting.endpoint is not None
    return endpoint, accepting.endpoint


def test_the_best_is_taken(pair: tuple[socket.socket, socket.socket]) -> None:
    client, server = Fakes(), Fakes()
    ours, theirs = meet(pair, client, server)
    assert (ours.transport, theirs.transport, dict(ours.why_not)) == ("shm", "shm", {})
    assert (client.held, server.held) == (0, 0)
    ours.close()
    theirs.close()


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("other", STEPS)
def test_what_fails_is_passed_over_and_explained(
    pair: tuple[socket.socket, socket.socket], step: str, other: str
) -> None:
    client, server = Fakes(shm=step, rdma=other), Fakes(shm=step, rdma=other)
    ours, theirs = meet(pair, client, server)
    assert (ours.transport, theirs.transport) == ("tcp", "tcp")
    assert f"{step} does not work" in ours.why_not["shm"]
    assert f"{other} does not work" in ours.why_not["rdma"]
    assert (client.held, server.held) == (0, 0)
    ours.close()
    theirs.close()


def test_reasons_name_only_what_would_have_been_better(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = meet(pair, Fakes(shm="offer", tcp="offer"), Fakes())
    assert ours.transport == "rdma"
    assert list(ours.why_not) == ["shm"]
    ours.close()
    theirs.close()


@pytest.mark.parametrize("step", STEPS)
def test_a_transport_that_was_asked_for_and_cannot_be_is_an_error(
    pair: tuple[socket.socket, socket.socket], step: str
) -> None:
    client, server = Fakes("rdma", rdma=step), Fakes(rdma=step)
    with pytest.raises(TransportUnavailable, match=f"only rdma may be used.*{step} does not work"):
        meet(pair, client, server)
    assert (client.held, server.held) == (0, 0)


def test_the_servers_wish_is_told_to_the_client(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPOKE_TRANSPORT", "tcp")
    server = Fakes()
    monkeypatch.delenv("SPOKE_TRANSPORT")
    ours, theirs = meet(pair, Fakes(), server)
    assert ours.transport == "tcp"
    assert "the actor's side says: SPOKE_TRANSPORT=tcp was asked for" in ours.why_not["shm"]
    ours.close()
    theirs.close()


def test_both_sides_can_send_over_what_was_agreed(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = meet(pair, Choice("tcp"), Choice())
    ours.send(1, 7, b"header", (), may_wait=True, must=False)  # type: ignore[arg-type]
    (frame,) = theirs.receive()
    assert (frame.call_id, frame.header) == (7, b"header")  # type: ignore[union-attr]
    assert str(ours.why_not["shm"]) == "transport=tcp was asked for"
    ours.close()
    theirs.close()


def test_a_choice_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidRequest, match="transport is 'smoke'"):
        Choice("smoke")
    monkeypatch.setenv("SPOKE_TRANSPORT", "udp")
    with pytest.raises(InvalidRequest, match="SPOKE_TRANSPORT is 'udp'"):
        Choice()
    assert Choice("tcp").names == ("tcp",)
    monkeypatch.setenv("SPOKE_TRANSPORT", "")
    assert Choice().names == NAMES
    assert better_than("tcp") == ("shm", "rdma")


def test_a_transport_reads_well() -> None:
    assert str(Transport("shm")) == "shm"
    assert str(Transport("tcp", {"shm": "another host"})) == "tcp (not shm: another host)"


# A peer that has proved itself and is broken.


def negotiation() -> tuple[ServerNegotiation, Fakes]:
    choice = Fakes()
    return ServerNegotiation(Wire(socket.socket(), "peer", LIMIT), choice), choice


def feed(server: ServerNegotiation, data: bytes) -> bytes:
    """In the pieces that it wants; the answers."""
    answers = b""
    while data and server.endpoint is None:
        piece, data = data[: server.wanted], data[server.wanted :]
        answers += server.feed(piece)
    return answers


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_waited_for(data: bytes) -> None:
    server, choice = negotiation()
    with contextlib.suppress(MalformedData):
        feed(server, data)
    assert server.wanted <= MESSAGE_BYTES_MAX
    server.close()
    assert choice.held == 0


@given(plain)
def test_any_message_is_refused_or_answered(message: object) -> None:
    for shaped in (message, ["offer", message], ["offer", {"shm": message}], ["offer", {"tcp": {}, "x": message}]):
        server, choice = negotiation()
        try:
            answer = feed(server, encode(shaped))
        except MalformedData:
            pass
        else:
            assert len(answer) <= MESSAGE_BYTES_MAX + 4
        server.close()
        assert choice.held == 0


@given(plain, plain, plain)
def test_any_answer_is_refused_or_passed_over(name: object, params: object, refused: object) -> None:
    for message in ([name, params, refused], ["shm", params, {}], ["tcp", {"from": "server"}, refused], name):
        ours, theirs = socket.socketpair()
        client = Fakes()
        with ours, theirs:
            theirs.sendall(encode(message))
            theirs.shutdown(socket.SHUT_WR)

            def receive(count: int, sock: socket.socket = ours) -> bytes:
                if len(data := sock.recv(count, socket.MSG_WAITALL)) < count:
                    raise EOFError
                return data

            try:
                wire = Wire(ours, "peer", LIMIT)
                ClientNegotiation(wire, client, receive, time.monotonic() + 10).run().close()
            except (MalformedData, TransportUnavailable, EOFError, AssertionError):
                pass
        assert client.held == 0


def test_lengths_are_checked_before_anything_is_read() -> None:
    for length in (0, MESSAGE_BYTES_MAX + 1, (1 << 32) - 1):
        server, _ = negotiation()
        with pytest.raises(MalformedData):
            server.feed(length.to_bytes(4, "little"))


def test_offers_without_end_are_refused() -> None:
    server, choice = negotiation()
    offer = encode(["offer", {"shm": {"from": "client"}}])
    for _ in range(ROUNDS_MAX):
        assert feed(server, offer)
        assert choice.held == 1
    with pytest.raises(MalformedData, match="again"):
        feed(server, offer)
    assert choice.held == 0


def test_a_confirmation_of_nothing_is_refused() -> None:
    server, _ = negotiation()
    with pytest.raises(MalformedData):
        feed(server, encode(["confirm"]))


def test_reasons_are_short_enough_to_cross() -> None:
    choice = Fakes()
    for fake in choice.fakes.values():
        fake.fail_at = lambda step: (_ for _ in ()).throw(Unavailable("because " * 4000))  # type: ignore[method-assign]
    server = ServerNegotiation(Wire(socket.socket(), "peer", LIMIT), choice)
    answer = feed(server, encode(["offer", {name: {"from": "client"} for name in NAMES}]))
    assert msgpack.unpackb(answer[4:])[0] == ""
