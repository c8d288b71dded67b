"""One reliable-connected queue pair with its completion queues and the registered slots of its small messages.

pyverbs never lets go of the interpreter's lock and crashes when a closed object is used. So nothing here waits, and
its owner calls everything under one lock. Work requests are made once for each slot and size class and posted again
and again: making one costs more than posting it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import socket
import threading
from typing import Any, Final

from spoke.transport.rdma.device import Device, mtu_code, queue_pairs
from spoke.transport.rdma.pool import Block
from spoke.transport.rdma.wire import CHUNKS_MAX, SLOT_BYTES, SLOTS, VERSION

# The work request's id says what has completed: a slot, the read of a chunk, or a part of a one-sided transfer.
READ: Final = 1 << 32
ONE_SIDED: Final = 2 << 32
ONE_SIDED_MAX: Final = 8  # under way at once
ONE_SIDED_KEPT: Final = 256  # work requests, since the same memory is most often written or read again and again
SENDS_MAX: Final = SLOTS + CHUNKS_MAX + ONE_SIDED_MAX + 8
SIGNAL_EVERY: Final = 8
_POLL_MAX: Final = 2 * SENDS_MAX  # all there can be
_channels = threading.Lock()
# 4.096 us * 2^17 for each of 7 tries: about four seconds until a peer whose card does not answer is given up. A dead
# process is noticed by its socket; this is for hosts, and must not be shorter than the stalls of a busy machine.
_TIMEOUT, _RETRIES, _RNR_RETRIES, _RNR_TIMER = 17, 7, 3, 12


class QueueBroken(Exception):
    """A work request failed; with a reliable connection that is the connection's end."""


class CompletionQueue:
    """A completion queue with a channel of its own, whose descriptor polls readable once armed."""

    def __init__(self, device: Device, depth: int) -> None:
        verbs = device.verbs
        self.channel, self.fd = _make_channel(device)
        try:
            self.queue = verbs.CQ(device.context, depth, None, self.channel, 0)
        except BaseException:
            self.channel.close()
            raise
        self._error = verbs.PyverbsError
        self._unacknowledged = 0
        self.armed = False  # what completes next makes the descriptor readable, or something has
        self._told = False  # something has, since a completion was taken while armed

    def poll(self) -> list[Any]:
        """What is complete, without waiting."""
        found: list[Any] = self.queue.poll(_POLL_MAX)[1]
        if found and self.armed:
            self._told = True
        return found

    def arm(self) -> bool:
        """Make the next completion (one that is not there yet) readable at the descriptor; then poll once more.

        Whether the descriptor was readable for one that was taken.
        """
        was_readable = self._told and self.disarm()
        if not self.armed:
            self.queue.req_notify()
            self.armed = True
        return was_readable

    def disarm(self) -> bool:
        """Take the event off the channel; False where none has come yet."""
        try:
            self.channel.get_cq_event(self.queue)
        except self._error as error:
            if getattr(error, "error_code", 0) != errno.EAGAIN:
                raise QueueBroken(f"the completion channel failed: {error}") from error
            return False
        self.armed = self._told = False
        self._unacknowledged += 1
        if self._unacknowledged >= 64:
            self.queue.ack_events(self._unacknowledged)
            self._unacknowledged = 0
        return True

    def close(self) -> None:
        """Free both, the queue first; its queue pair must be closed."""
        self.queue.close()
        self.channel.close()


class QueuePair:
    """Slots to send from and to receive into, and reads of the peer's memory."""

    def __init__(self, device: Device) -> None:
        self.device = device
        verbs, e = device.verbs, device.verbs.e
        self._verbs = verbs
        self._psn = secrets.randbits(24)
        self.send_queue = CompletionQueue(device, 2 * SENDS_MAX)
        try:
            self.recv_queue = CompletionQueue(device, 2 * SLOTS)
            try:
                self._make(device)
            except BaseException:
                self.recv_queue.close()
                raise
        except BaseException:
            self.send_queue.close()
            raise
        self._flags = (0, int(e.IBV_SEND_SIGNALED))
        queue_pairs.add(self)

    def _make(self, device: Device) -> None:
        verbs, e = self._verbs, self._verbs.e
        cap = verbs.QPCap(max_send_wr=SENDS_MAX, max_recv_wr=SLOTS, max_send_sge=1, max_recv_sge=1)
        # No QPAttr here: given one, the queue pair goes to INIT at once without remote access rights.
        kind = verbs.QPInitAttr(
            qp_type=e.IBV_QPT_RC, scq=self.send_queue.queue, rcq=self.recv_queue.queue, cap=cap, sq_sig_all=0
        )
        self.qp = verbs.QP(device.pd, kind)
        try:
            # Both directions in one block: the first half receives.
            access = e.IBV_ACCESS_LOCAL_WRITE
            self.block = Block(2 * SLOTS * SLOT_BYTES, lambda address, nbytes: device.register(address, nbytes, access))
        except BaseException:
            self.qp.close()
            raise
        half = SLOTS * SLOT_BYTES
        slots = [self.block.view[at : at + SLOT_BYTES] for at in range(0, 2 * half, SLOT_BYTES)]
        self.recv_slots, self.send_slots = slots[:SLOTS], slots[SLOTS:]
        self._send_address = self.block.address + half
        self._sends: dict[tuple[int, int, bool], Any] = {}
        self._one_sided: dict[tuple[int, ...], Any] = {}
        self._recvs = [
            verbs.RecvWR(
                wr_id=slot, num_sge=1,
                sg=[verbs.SGE(self.block.address + slot * SLOT_BYTES, SLOT_BYTES, self.block.lkey)],
            )
            for slot in range(SLOTS)
        ]  # fmt: skip

    def describe(self) -> dict[str, Any]:
        """What the peer must know to connect: plain data, see ``wire.check_peer``."""
        choice = self.device.choice
        return {
            "version": VERSION, "qpn": self.qp.qp_num, "psn": self._psn, "lid": choice.port.lid,
            "gid": choice.gid.gid.exploded, "link_layer": choice.port.link_layer, "mtu": self.device.mtu_bytes,
            "reads": self.device.reads_max, "slots": SLOTS, "slot_bytes": SLOT_BYTES, "host": socket.gethostname(),
        }  # fmt: skip

    def connect(self, peer: dict[str, Any]) -> None:
        """Receive from now on, and be ready to send; raises QueueBroken."""
        verbs, e, choice = self._verbs, self._verbs.e, self.device.choice
        attr = verbs.QPAttr(port_num=choice.port.port)
        attr.qp_access_flags = e.IBV_ACCESS_LOCAL_WRITE | e.IBV_ACCESS_REMOTE_READ | e.IBV_ACCESS_REMOTE_WRITE
        attr.dest_qp_num, attr.rq_psn, attr.sq_psn = peer["qpn"], peer["psn"], self._psn
        attr.path_mtu = mtu_code(min(peer["mtu"], self.device.mtu_bytes))
        attr.max_rd_atomic = min(self.device.reads_max, peer["reads"])
        attr.max_dest_rd_atomic = self.device.reads_max
        attr.min_rnr_timer, attr.timeout = _RNR_TIMER, _TIMEOUT
        attr.retry_cnt, attr.rnr_retry = _RETRIES, _RNR_RETRIES
        routed = choice.port.link_layer != "InfiniBand" or not peer["lid"]
        if routed:
            route = verbs.GlobalRoute(dgid=verbs.GID(peer["gid"]), sgid_index=choice.gid.index, hop_limit=64)
            attr.ah_attr = verbs.AHAttr(gr=route, is_global=1, port_num=choice.port.port)
        else:
            attr.ah_attr = verbs.AHAttr(dlid=peer["lid"], is_global=0, port_num=choice.port.port)
        try:
            self.qp.to_init(attr)
            for slot in range(SLOTS):
                self.post_recv(slot)
            self.qp.to_rts(attr)
        except verbs.PyverbsError as error:
            raise QueueBroken(f"the queue pair could not be connected: {error}") from error

    def post_recv(self, slot: int) -> None:
        """Let the slot receive (again)."""
        self.qp.post_recv(self._recvs[slot])

    def post_send(self, slot: int, nbytes: int, signaled: bool) -> None:
        """Send the first ``nbytes`` of the slot, or a little more: work requests are kept for rounded sizes."""
        nbytes = (nbytes + 127) & ~127 if nbytes <= 1024 else (nbytes + 1023) & ~1023
        key = (slot, nbytes, signaled)
        request = self._sends.get(key)
        if request is None:
            verbs = self._verbs
            where = verbs.SGE(self._send_address + slot * SLOT_BYTES, nbytes, self.block.lkey)
            request = self._sends[key] = verbs.SendWR(
                wr_id=slot, opcode=verbs.e.IBV_WR_SEND, num_sge=1, sg=[where], send_flags=self._flags[signaled]
            )
        self.qp.post_send(request)

    def post_read(self, wr_id: int, address: int, lkey: int, nbytes: int, remote: int, rkey: int) -> None:
        """Read the peer's memory into ours."""
        self._post_rdma(self._verbs.e.IBV_WR_RDMA_READ, wr_id, address, lkey, nbytes, remote, rkey)

    def post_write(self, wr_id: int, address: int, lkey: int, nbytes: int, remote: int, rkey: int) -> None:
        """Write our memory into the peer's."""
        self._post_rdma(self._verbs.e.IBV_WR_RDMA_WRITE, wr_id, address, lkey, nbytes, remote, rkey)

    def _post_rdma(self, opcode: int, wr_id: int, address: int, lkey: int, nbytes: int, remote: int, rkey: int) -> None:
        key = (opcode, wr_id, address, lkey, nbytes, remote, rkey)
        request = self._one_sided.get(key)
        if request is None:
            verbs = self._verbs
            where = verbs.SGE(address, nbytes, lkey)
            request = verbs.SendWR(wr_id=wr_id, opcode=opcode, num_sge=1, sg=[where], send_flags=self._flags[True])
            request.set_wr_rdma(rkey, remote)
            if len(self._one_sided) >= ONE_SIDED_KEPT:
                self._one_sided.clear()
            self._one_sided[key] = request
        self.qp.post_send(request)

    def close(self) -> None:
        """Free everything, in the order that verbs demand."""
        self.qp.close()
        self.block.deregister()
        self._sends.clear()
        self._recvs.clear()
        self._one_sided.clear()
        self.send_queue.close()
        self.recv_queue.close()


def _make_channel(device: Device) -> tuple[Any, int]:
    """A completion channel that never blocks, and its descriptor, which older releases of pyverbs do not show."""
    with _channels:
        before = _channel_fds()
        channel = device.verbs.CompChannel(device.context)
        fd = getattr(channel, "fd", None)
        if fd is None:
            fd = (_channel_fds() - before).pop()
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_NONBLOCK)
    return channel, fd


def _channel_fds() -> set[int]:
    fds = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}").endswith("[infinibandevent]"):
                fds.add(int(name))
        except OSError:  # the listing's own
            continue
    return fds
