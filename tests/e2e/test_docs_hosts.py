"""The pages on Kubernetes and Slurm, walked.

kubectl is a stand-in that lets the real one build what it would send, and runs commands in "pods" here: the server, the
allocator and the agent are started by the manifests' own commands. sbatch, srun, scontrol and scancel are stand-ins,
too, that do what the script relies on; all that they start is real.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from spoke.cli.embedded import free_port, server_binary
from tests.daemons import end_all
from tests.fakes import eventually
from tests.pages import ROOT, Walk

FOLDER = ROOT / "deploy/kubernetes"

KUBECTL = """#!/bin/bash
# exec: the command here. create: as the real one would send it. Others: said to be done.
real={real}
case " $* " in
  *" exec "*) while [ "$1" != -- ]; do shift; done; shift; exec "$@" ;;
  *" create "*) if [ -n "$real" ]; then exec "$real" "$@" --dry-run=client -o yaml; fi ;;
  *" apply -k "*) if [ -n "$real" ]; then exec "$real" kustomize "${{@: -1}}"; fi ;;
esac
"""

SBATCH = r"""#!/bin/bash
# Runs the script at once, as Slurm would on the job's first node, with --wait in the foreground.
wait=; nodes=1; name=
while [[ $1 == --* ]]; do
  case $1 in --wait) wait=1 ;; --nodes=*) nodes=${1#*=} ;; --job-name=*) name=${1#*=} ;; esac; shift
done
export SLURM_JOB_ID=$(($(cat jobs 2> /dev/null || echo 0) + 1)) SLURM_NNODES=$nodes SLURM_JOB_NODELIST="n[1-$nodes]"
echo "$SLURM_JOB_ID" > jobs
touch "slurm-$SLURM_JOB_ID.out"
"$@" > "slurm-$SLURM_JOB_ID.out" 2>&1 &
echo $! > "pid-${name:-spoke}"
if [ -n "$wait" ]; then wait $!; fi
"""

SRUN = r"""#!/bin/bash
# A task on each node, until SIGTERM.
while [[ $1 == --* ]]; do shift; done
for at in $(seq "$SLURM_NNODES"); do
  SLURMD_NODENAME=n$at SLURM_CPUS_ON_NODE=2 SLURM_PROCID=$((at - 1)) "$@" &
done
trap 'kill $(jobs -p); wait' TERM
wait
"""

SCONTROL = "#!/bin/bash\n[ \"$1 $2\" = 'show hostnames' ] && for at in $(seq 3); do echo localhost; done\n"
SCANCEL = r"""#!/bin/bash
pid=$(cat "pid-${1#--name=}")
kill -TERM "$pid"
while kill -0 "$pid" 2> /dev/null; do sleep 0.1; done
"""


def program(walk: Walk, name: str, text: str) -> None:
    path = walk.programs / name
    path.write_text(text)
    path.chmod(0o755)


@pytest.mark.timeout(200)
def test_slurm(tmp_path: Path) -> None:
    with Walk(tmp_path / "reader", variables={"SPOKE_GPUS": "4"}) as walk:
        (walk.directory / "deploy").symlink_to(ROOT / "deploy")
        for name, text in {"sbatch": SBATCH, "srun": SRUN, "scontrol": SCONTROL, "scancel": SCANCEL}.items():
            program(walk, name, text)
        typed = walk.walk(ROOT / "docs/how-to/slurm.md")
        assert len(typed) == 8
        (directory,) = walk.directory.glob("spoke-2-*")
        assert (directory / "url").stat().st_mode & 0o077 == 0
        assert len(list(walk.directory.glob("spoke-1-*/logs/n[12]/*/*.log"))) == 2, "what the ranks printed"


def command_of(kind: str, name: str, mapped: dict[str, str]) -> list[str]:
    """A container's command, with what Kubernetes puts into it."""
    for path in FOLDER.glob("*.yaml"):
        for one in yaml.safe_load_all(path.read_text()):
            if one["kind"] == kind and one["metadata"]["name"] == name:
                (container,) = one["spec"]["template"]["spec"]["containers"]
                words = [str(word) for word in container["command"]]
                for shown, meant in mapped.items():
                    words = [word.replace(shown, meant) for word in words]
                return words
    raise AssertionError(name)


@pytest.mark.timeout(200)
def test_kubernetes(tmp_path: Path) -> None:
    port = free_port()
    (configuration,) = [
        one for one in yaml.safe_load_all((FOLDER / "server.yaml").read_text()) if one["kind"] == "ConfigMap"
    ]
    pods: list[subprocess.Popen[bytes]] = []
    with Walk(tmp_path / "reader", {"spoke-server:6379": f"127.0.0.1:{port}"}) as walk:
        (walk.directory / "deploy").symlink_to(ROOT / "deploy")
        program(walk, "kubectl", KUBECTL.format(real=shutil.which("kubectl") or "''"))
        walk.variables["SPOKE_URL"] = (walk.directory / "url-operator").as_uri()  # as in the operator's pod
        users = walk.directory / "users.acl"

        def pod(name: str, words: list[str], role: str) -> None:
            url = walk.directory / f"url-{role}"
            found = re.search(rf"^user {role} on >(\S+)", users.read_text(), re.MULTILINE)
            if found:
                url.write_text(f"redis://{role}:{found[1]}@127.0.0.1:{port}\n")
                url.chmod(0o600)
            env = {**walk.env, "SPOKE_URL": url.as_uri()}
            with open(tmp_path / f"{name}.log", "wb") as out:
                pods.append(subprocess.Popen(words, stdout=out, stderr=out, env=env, cwd=tmp_path))

        def start() -> None:
            text = configuration["data"]["valkey.conf"].replace("/etc/valkey-users/users.acl", str(users))
            text = text.replace("dir /data", f"dir {tmp_path}") + f"port {port}\n"
            (tmp_path / "valkey.conf").write_text(text)
            mapped = {"valkey-server": server_binary(), "/etc/valkey/valkey.conf": str(tmp_path / "valkey.conf")}
            pod("server", command_of("StatefulSet", "spoke-server", mapped), "nobody")
            pod("allocator", command_of("Deployment", "spoke-allocator", {":9464": f":{free_port()}"}), "allocator")
            place = {"$(NODE_NAME)": "node-1", "$(POD_IP)": "127.0.0.1", "$(CPUS)": "96", "$(MEMORY)": str(900 << 30)}
            place |= {"/opt/spoke/actors.py": str(ROOT / "examples/digits_actors.py"), "auto": "4"}
            place |= {"/var/log/spoke": str(tmp_path / "logs"), ":9465": f":{free_port()}"}
            pod("agent", command_of("DaemonSet", "spoke-agent", place), "agent")
            pod("operator", ["true"], "operator")

        walk.before["kubectl apply"] = start
        try:
            typed = walk.walk(ROOT / "docs/how-to/kubernetes.md")
            log = (tmp_path / "agent.log").read_text
            eventually(lambda: "node-1 is up in pool default" in log(), "the agent")
        finally:
            end_all(reversed(pods))
    assert len(typed) == 10
