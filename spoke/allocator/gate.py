"""The gate: what comes from the inbox, read, and (where the pool has a master key) its signature checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from spoke.protocol.identity import Signer, Verifier, client_prefix
from spoke.protocol.requests import Asked, Envelope, Garbage, decode_request, refused


class Gate:
    """Reads requests. Without master keys it takes everybody's word for who they are."""

    def __init__(self, pool: str, masters: Sequence[bytes] = ()) -> None:
        self._verifier = Verifier(masters, pool) if masters else None

    def admit(self, raw: Mapping[bytes, bytes]) -> Asked:
        """The request, or why it is none. Never raises."""
        asked = decode_request(raw)
        if self._verifier is None:
            return asked
        signer = self._verifier.signer(raw)
        if signer is None:
            return _refused(asked, "it is not signed, or not with a key of this pool's master")
        if not _speaks_for(signer, asked):
            return _refused(asked, f"{signer} signed it, who may not speak for {asked.client_id or asked.node_id}")
        return asked._replace(signer=signer) if isinstance(asked, Envelope) else asked


def _speaks_for(signer: Signer, asked: Asked) -> bool:
    if asked.node_id:
        return signer.kind == "node" and signer.name in ("*", asked.node_id) and not asked.client_id
    return signer.kind != "node" and asked.client_id.startswith(client_prefix(signer.name))


def _refused(asked: Asked, why: str) -> Garbage:
    return refused(asked, "authentication", f"{why}; set SPOKE_KEY or SPOKE_KEY_FILE to a key from `spoke key issue`")
