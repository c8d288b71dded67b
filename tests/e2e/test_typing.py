"""Type hints as a user's checker and editor see them: `mypy --strict` of scripts that use the public interface."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

GOOD = """
import asyncio
from typing import Any, assert_type

import spoke


@spoke.register_actor("Trainer")
class Trainer(spoke.Actor):
    def __init__(self, lr: float = 0.1) -> None:
        self.lr = lr

    def step(self, batch: list[float]) -> float:
        neighbour = self.ctx.peer((self.ctx.rank + 1) % self.ctx.world_size)
        neighbour.tell("hear", self.ctx.rank)
        return sum(batch) * self.lr

    def on_notice(self, notice: spoke.Notice) -> None:
        print(notice.kind, notice.deadline_ms)


assert_type(Trainer, type[Trainer])
trainer = Trainer(lr=0.2)


def main(url: str | None = None) -> list[spoke.ActorExit]:
    with spoke.Client(url, project="vision") as client:
        future = client.gang_allocate(2, 4, spoke.Resources(gpus=0.5, memory="1GiB"), strategy="spread", min_nodes=1)
        reason = future.pending_reason()
        assert_type(reason, spoke.Explanation | None)
        if reason is not None:
            print(reason.sentence, [holder.ticket_id for node in reason.nodes for holder in node.holders])
        with future.result(timeout=60) as gang:
            assert_type(gang, spoke.Gang)
            actors = gang.launch("Trainer", lambda slot: {"lr": 0.1 * slot.global_rank}).result()
            assert_type(actors, list[spoke.ActorHandle])
            loss: float = actors[0].call("step", [1.0, 2.0]).result()
            for item in actors[0].stream("losses"):
                print(item, loss)
            with gang.mailbox() as mailbox:
                assert_type(mailbox.get(1.0).rank, int)
            buffer = spoke.Buffer(bytearray(8), gang)
            buffer.handle.read_into(bytearray(8)).result()
            assert_type(gang.slots[0].gpu_ids, tuple[int, ...])
            single = client.spawn("Trainer", "one").result()
            assert_type(single.exit, spoke.ActorExit | None)
            status = client.status()
            assert_type([node.state for node in status.nodes], list[str])
            assert_type(client.drain_node("n0", deadline=60).result(), bool)
            try:
                return gang.wait(timeout=10).result()
            except spoke.WaitTimeout as error:
                assert_type(error.code, str)
                return list(gang.exits.values())


async def amain() -> int:
    async with spoke.AsyncClient() as client:
        async with await client.gang_allocate(groups=[spoke.Group("head"), spoke.Group("rest", num_nodes=2)]) as gang:
            actors = await gang.launch({"rest": "Trainer"})
            assert_type(actors, list[spoke.AsyncActorHandle])
            answers: list[Any] = await asyncio.gather(*(actor.call("step", [1.0]) for actor in actors))
            async for item in actors[0].stream("losses"):
                print(item)
            assert_type(gang.ranks("rest"), range)
            assert_type(await client.status(), spoke.PoolStatus)
            return len(answers)


if __name__ == "__main__":
    print(main(), asyncio.run(amain()), spoke.__version__)
"""

BAD = """
import spoke

client = spoke.Client(retries=3)  # wrong
face = spoke.AsyncClient(lease_s="long")  # wrong
gang = client.gang_allocate("two").result()  # wrong
gang.launch(7)  # wrong
gang.slots[0].gpu  # wrong
client.gang_allocate(strategy="tight")  # wrong
for slot in gang:
    slot.node_id = "n7"  # wrong
actor: spoke.ActorHandle = client.spawn("Trainer", "x")  # wrong


class Plain:
    pass


spoke.register_actor("Plain")(Plain)  # wrong
"""


def mypy(tmp_path: Path, text: str) -> tuple[int, str]:
    """Check a script far from the project, as a user would; the cache is the project's."""
    (tmp_path / "script.py").write_text(text)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(ROOT / ".mypy_cache"), "script.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=110, check=False)
    return done.returncode, done.stdout + done.stderr


def test_a_script_that_uses_everything_is_clean_under_strict(tmp_path: Path) -> None:
    assert (ROOT / "spoke" / "py.typed").exists()
    code, said = mypy(tmp_path, GOOD)
    assert code == 0, said


def test_a_checker_finds_what_is_wrong(tmp_path: Path) -> None:
    _, said = mypy(tmp_path, BAD)
    lines = {int(line) for line in re.findall(r"^script\.py:(\d+): error", said, re.MULTILINE)}
    wrong = {number for number, line in enumerate(BAD.splitlines(), 1) if line.endswith("# wrong")}
    assert lines == wrong, said
