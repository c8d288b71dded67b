"""The gate: what comes from the inbox, read, and (where the pool has a master key) its signature checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from spoke.protocol.identity import Signer, Verifier, client_prefix
from spoke.protocol.requests import Envelope, Garbage, decode_request

Admitted = Envelope | Garbage


class Gate:
    """Reads requests. Without master keys it takes everybody's word for who they are."""

    def __init__(self, pool: str, masters: Sequence[bytes] = ()) -> None:
        self._verifier = Verifier(masters, pool) if masters else None

    def admit(self, raw: Mapping[bytes, bytes]) -> Admitted:
        """The request, or why it is none. Never raises."""
        asked = decode_request(raw)
        if self._verifier is None:
            return asked
        signer = self._verifier.signer(raw)
        if signer is None:
            return _refused(asked, raw, "it is not signed, or not with a key of this pool's master")
        if not _speaks_for(signer, asked):
            return _refused(asked, raw, f"{signer} signed it, who may not speak for {asked.client_id or asked.node_id}")
        return asked._replace(signer=signer) if isinstance(asked, Envelope) else asked


def _speaks_for(signer: Signer, asked: Admitted) -> bool:
    if asked.node_id:
        return signer.kind == "node" and signer.name in ("*", asked.node_id) and not asked.client_id
    return signer.kind != "node" and asked.client_id.startswith(client_prefix(signer.name))


def _refused(asked: Admitted, raw: Mapping[bytes, bytes], why: str) -> Garbage:
    name = asked.request.TYPE if isinstance(asked, Envelope) else asked.request
    reason = f"{name}: {why}; set SPOKE_KEY or SPOKE_KEY_FILE to a key from `spoke key issue`"
    return Garbage(asked.client_id, asked.seq, name, "authentication", reason, asked.node_id, asked.incarnation)
