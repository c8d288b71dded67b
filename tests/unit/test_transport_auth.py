"""The handshake lets in who knows the secret, on both sides, and nobody else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoke.errors import InvalidRequest, MalformedData
from spoke.transport.auth import HELLO_BYTES, VERDICT_BYTES, ClientHandshake, ServerHandshake, WrongSecret, check_secret

SECRET = b"s" * 32


def meet(client: ClientHandshake, server: ServerHandshake) -> None:
    hello = server.feed(client.hello)
    client.check(server.feed(client.answer(hello)))


def test_two_that_know_the_secret_accept_each_other() -> None:
    server = ServerHandshake(SECRET)
    meet(ClientHandshake(SECRET), server)
    assert server.accepted


def test_a_wrong_secret_is_refused_by_both() -> None:
    server = ServerHandshake(SECRET)
    with pytest.raises(WrongSecret):
        meet(ClientHandshake(b"t" * 32), server)
    assert not server.accepted


def test_a_server_that_only_says_yes_is_refused() -> None:
    client = ClientHandshake(SECRET)
    client.answer(ServerHandshake(SECRET).feed(ClientHandshake(SECRET).hello))
    with pytest.raises(WrongSecret):
        client.check(b"\x01" + bytes(VERDICT_BYTES - 1))


def test_a_proof_played_back_to_its_sender_is_refused() -> None:
    client = ClientHandshake(SECRET)
    own_proof = client.answer(client.hello)  # a peer that mirrors everything
    with pytest.raises(WrongSecret):
        client.check(b"\x01" + own_proof)


@given(st.binary(min_size=HELLO_BYTES, max_size=HELLO_BYTES))
def test_garbage_is_no_hello(data: bytes) -> None:
    with pytest.raises(MalformedData):
        ServerHandshake(SECRET).feed(data)


def test_messages_may_come_in_pieces() -> None:
    client, server = ClientHandshake(SECRET), ServerHandshake(SECRET)
    assert server.feed(client.hello[:5]) == b""
    assert server.wanted == HELLO_BYTES - 5
    client.check(server.feed(client.answer(server.feed(client.hello[5:]))))


@pytest.mark.parametrize("secret", [b"", b"short", "text" * 10])
def test_a_secret_too_short_is_refused(secret: bytes) -> None:
    with pytest.raises(InvalidRequest):
        check_secret(secret)
