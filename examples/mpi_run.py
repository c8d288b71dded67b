"""Run a program of MPICH (mpi4py, say) over the nodes of a gang, as ``mpirun`` does over hosts.

    python examples/mpi_run.py --nodes 2 --per-node 2 -- python examples/mpi_hello.py

mpiexec's manual launcher prints the command that it wants on every host, instead of starting it by ssh. Spoke starts it
there: one actor on each node, which holds the GPUs of all ranks of that node. The agents must --allow-commands.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys

import spoke

WAIT_S = 60.0
PROXY, END = "HYDRA_LAUNCH: ", "HYDRA_LAUNCH_END"


def main() -> int:
    """Run it; the exit code is mpiexec's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--per-node", type=int, default=1, help="ranks on each node, with one GPU each")
    parser.add_argument("--gpus-per-rank", type=int, default=1)
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- COMMAND...")
    options = parser.parse_args()
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    need = spoke.Resources(gpus=options.per_node * options.gpus_per_rank)
    with spoke.Client() as client:
        gang = client.gang_allocate(options.nodes, 1, need, name="mpi", on_failure="release").result()
        hosts = ",".join(f"{host}:{options.per_node}" for host in different([slot.host for slot in gang]))
        words = ["mpiexec", "-launcher", "manual", "-hosts", hosts, "-n", str(options.nodes * options.per_node)]
        mpiexec = subprocess.Popen([*words, *command], stdout=subprocess.PIPE, text=True)
        try:
            gang.launch_command(["sh", "-c", proxy_of(mpiexec)]).result(WAIT_S)
            assert mpiexec.stdout is not None
            for line in mpiexec.stdout:
                print(line, end="", flush=True)
            return mpiexec.wait()
        finally:
            mpiexec.kill()
            mpiexec.wait()


def proxy_of(mpiexec: subprocess.Popen[str]) -> str:
    """What is to run on each node: the commands that mpiexec prints differ in their last word, the node's number."""
    assert mpiexec.stdout is not None
    wanted = []
    for line in mpiexec.stdout:
        if line.startswith(END):
            break
        wanted.append(shlex.split(line.removeprefix(PROXY)))
    if not wanted:
        raise SystemExit("mpiexec asked for nothing to be started")
    return f"exec {shlex.join(wanted[0][:-1])} $RANK"


def different(hosts: list[str]) -> list[str]:
    """The nodes' addresses. Agents that share a machine, as in a trial, get a loopback address each."""
    return hosts if len(set(hosts)) == len(hosts) else [f"127.0.0.{at + 1}" for at in range(len(hosts))]


if __name__ == "__main__":
    sys.exit(main())
