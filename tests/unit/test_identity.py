"""Keys, signatures, and what a signature lets its holder do."""

from __future__ import annotations

from pathlib import Path

import pytest

from spoke.allocator.gate import Gate
from spoke.errors import InvalidRequest
from spoke.protocol import replies as p
from spoke.protocol import requests as r
from spoke.protocol.identity import Key, find_key, issue, new_master, parse_key, read_masters
from tests.builders import MemoryPool, gang, node_spec

MASTER, OTHER = b"m" * 32, b"o" * 32
ALICE, BOB = issue(MASTER, "user", "alice"), issue(MASTER, "user", "bob")
OPS, NODE, ANY_NODE = issue(MASTER, "admin", "ops"), issue(MASTER, "node", "n1"), issue(MASTER, "node", "*")


def raw_of(envelope: r.Envelope, key: Key | None, pool: str = "p") -> dict[bytes, bytes]:
    fields = r.encode_request(envelope, key, pool)
    return {k.encode(): v if isinstance(v, bytes) else str(v).encode() for k, v in fields.items()}


def asks(client_id: str, request: r.Request | None = None, seq: int = 1) -> r.Envelope:
    return r.Envelope(request or r.ConnectClient(5_000, user="claimed"), client_id, seq)


def admitted(envelope: r.Envelope, key: Key | None, masters: tuple[bytes, ...] = (MASTER,)) -> r.Envelope | r.Garbage:
    return Gate("p", masters).admit(raw_of(envelope, key))


@pytest.mark.parametrize("key", [ALICE, OPS, NODE, ANY_NODE], ids=str)
def test_a_key_survives_being_handed_out(key: Key) -> None:
    assert parse_key(key.text) == key
    assert key.secret.hex() not in repr(key)


@pytest.mark.parametrize("text", ["", "user:alice", "user:alice:xyz", "root:alice:" + "0" * 64, "user:a.b:" + "0" * 64])
def test_what_is_no_key_is_refused_without_being_shown(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_key(text)
    assert not text or text not in str(caught.value)


def test_a_signed_request_is_admitted_with_its_signer() -> None:
    found = admitted(asks("alice.1"), ALICE)
    assert isinstance(found, r.Envelope)
    assert found.signer == ALICE.signer
    assert admitted(asks("alice.1"), issue(OTHER, "user", "alice"), (MASTER, OTHER)) == found, "while masters change"


@pytest.mark.parametrize(
    ("client_id", "key"),
    [
        ("alice.1", None),
        ("alice.1", BOB),
        ("alice.1", NODE),
        ("alice.1", issue(OTHER, "user", "alice")),
        ("alice.1", Key(ALICE.signer, BOB.secret)),
        ("alicex.1", ALICE),
        ("c-1", ALICE),
    ],
    ids=str,
)
def test_nobody_speaks_for_another(client_id: str, key: Key | None) -> None:
    found = admitted(asks(client_id), key)
    assert isinstance(found, r.Garbage)
    assert found.code == "authentication"


@pytest.mark.parametrize("field", [b"type", b"seq", b"client_id", b"body", b"blobs", b"by", b"mac", b"v"])
def test_a_signature_covers_every_field(field: bytes) -> None:
    raw = raw_of(asks("alice.1")._replace(blobs=b"blob"), ALICE)
    raw[field] = raw[field][:-1] + bytes([raw[field][-1] ^ 1])
    assert isinstance(Gate("p", (MASTER,)).admit(raw), r.Garbage)


def test_a_signature_is_void_in_another_pool() -> None:
    assert isinstance(Gate("q", (MASTER,)).admit(raw_of(asks("alice.1"), ALICE, "p")), r.Garbage)


def test_a_node_reports_for_itself_only() -> None:
    report = r.Envelope(r.LeaveNode(), node_id="n1", incarnation="i")
    for key in (NODE, ANY_NODE):
        assert isinstance(admitted(report, key), r.Envelope)
    assert isinstance(admitted(report._replace(node_id="n2"), NODE), r.Garbage)
    assert isinstance(admitted(report, ALICE), r.Garbage)


class Signed:
    """A pool in memory whose gate checks signatures."""

    def __init__(self) -> None:
        self.pool, self.gate = MemoryPool(), Gate("p", (MASTER,))
        self._seqs: dict[str, int] = {}

    def ask(self, client_id: str, key: Key | None, request: r.Request, seq: int = 0) -> list[p.Message]:
        self._seqs[client_id] = seq or self._seqs.get(client_id, 0) + 1
        self.pool.handle(self.gate.admit(raw_of(asks(client_id, request, self._seqs[client_id]), key)))
        return self.pool.answers[client_id, self._seqs[client_id]]

    def register(self) -> None:
        self.pool.register(node_spec("n1"))


def a_pool_with_alices_ticket() -> Signed:
    signed = Signed()
    signed.register()
    for name, key in (("alice.1", ALICE), ("bob.1", BOB), ("ops.1", OPS)):
        assert signed.ask(name, key, r.ConnectClient(60_000, user="root")) == [p.Done()]
    (granted,) = signed.ask("alice.1", ALICE, r.AllocateGang(gang(), 0))
    assert isinstance(granted, p.Granted)
    return signed


def test_the_log_says_who_signed_not_who_was_claimed() -> None:
    signed = a_pool_with_alices_ticket()
    assert {client.user for client in signed.pool.state.clients.values()} == {"alice", "bob", "ops"}


def test_a_ticket_obeys_its_user_and_administrators() -> None:
    signed = a_pool_with_alices_ticket()
    for request in (r.ReleaseGang("t-1"), r.AttachGang("t-1"), r.StopActor("t-1", 0)):
        (refused,) = signed.ask("bob.1", BOB, request)
        assert isinstance(refused, p.Failed)
        assert refused.code == "forbidden"
    assert not isinstance(signed.ask("ops.1", OPS, r.AttachGang("t-1"))[0], p.Failed)
    assert signed.ask("ops.1", OPS, r.ReleaseGang("t-1")) == [p.Done()]


def test_a_forged_request_uses_up_nothing_and_answers_nobody() -> None:
    signed = a_pool_with_alices_ticket()
    assert signed.ask("alice.1", BOB, r.ReleaseGang("t-1"), seq=3) == []
    assert signed.ask("alice.1", None, r.ReleaseGang("t-1"), seq=3) == []
    assert "t-1" in signed.pool.state.tickets
    assert signed.ask("alice.1", ALICE, r.ReleaseGang("t-1"), seq=3) == [p.Done()]


def test_a_client_without_a_key_is_told_so() -> None:
    (refused,) = Signed().ask("c-1", None, r.ConnectClient(60_000))
    assert isinstance(refused, p.Failed)
    assert refused.code == "authentication"
    assert "SPOKE_KEY" in refused.reason


def test_a_forged_goodbye_does_not_stop_a_live_node() -> None:
    signed = a_pool_with_alices_ticket()
    before = signed.pool.agents["n1"].orders.copy()
    incarnation = signed.pool.state.nodes["n1"].incarnation
    forged = r.Envelope(r.LeaveNode(), node_id="n1", incarnation=incarnation)
    signed.pool.handle(signed.gate.admit(raw_of(forged, ALICE)))
    assert signed.pool.agents["n1"].orders == before
    assert signed.pool.state.nodes["n1"].phase == "up"


# --- files and the environment -----------------------------------------------------------------------------------


def test_a_master_key_is_written_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "master"
    new_master(path)
    assert path.stat().st_mode & 0o077 == 0
    assert len(read_masters(path)) == 1
    with pytest.raises(InvalidRequest):
        new_master(path)
    path.chmod(0o644)
    with pytest.raises(InvalidRequest, match="chmod 600"):
        read_masters(path)


def test_a_key_is_an_argument_a_variable_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPOKE_KEY", raising=False)
    assert find_key() is None
    (tmp_path / "key").write_text(BOB.text + "\n")
    monkeypatch.setenv("SPOKE_KEY_FILE", str(tmp_path / "key"))
    assert find_key() == BOB
    monkeypatch.setenv("SPOKE_KEY", ALICE.text)
    assert find_key() == ALICE
    assert find_key(OPS.text) == OPS
