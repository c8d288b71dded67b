"""The manifests in deploy/kubernetes hold together: fields, selectors, volumes, secrets, and commands that exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.test_house_deploy import check_command

FOLDER = Path(__file__).resolve().parents[2] / "deploy/kubernetes"
Document = dict[str, Any]


def documents() -> list[Document]:
    names = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]
    assert sorted(names) == sorted(path.name for path in FOLDER.glob("*.yaml") if path.name != "kustomization.yaml")
    return [one for name in names for one in yaml.safe_load_all((FOLDER / name).read_text())]


def of_kind(*kinds: str) -> list[Document]:
    return [one for one in documents() if one["kind"] in kinds]


WORKLOADS = of_kind("StatefulSet", "Deployment", "DaemonSet")


def workload(name: str) -> Document:
    return next(one for one in WORKLOADS if one["metadata"]["name"] == name)


def test_there_is_what_there_should_be() -> None:
    versions = {"Namespace": "v1", "ConfigMap": "v1", "Service": "v1"}
    assert sorted(one["kind"] for one in documents()) == sorted(
        [*versions, "StatefulSet", "Deployment", "Deployment", "DaemonSet"]
    )
    assert all(one["apiVersion"] == versions.get(one["kind"], "apps/v1") for one in documents())
    assert workload("spoke-allocator")["spec"]["replicas"] == 2
    assert workload("spoke-agent")["spec"]["updateStrategy"] == {"type": "OnDelete"}


@pytest.mark.parametrize("one", WORKLOADS, ids=lambda one: one["metadata"]["name"])
def test_a_workload_is_whole(one: Document) -> None:
    spec, template = one["spec"], one["spec"]["template"]
    assert spec["selector"]["matchLabels"] == template["metadata"]["labels"]
    pod = template["spec"]
    claims = [claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates", [])]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    for container in pod["containers"]:
        assert container["image"].count(":") == 1
        assert container["resources"]["limits"]["memory"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {*volumes, *claims}
        variables = {entry["name"] for entry in container.get("env", [])}
        assert set(re.findall(r"\$\((\w+)\)", " ".join(container["command"]))) <= variables
        ports = {port["name"] for port in container.get("ports", [])}
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            (how,) = [how for key, how in container.get(probe, {}).items() if isinstance(how, dict)] or [{"port": "?"}]
            assert how["port"] in {*ports, "?"}
        if container["command"][0] == "spoke":
            check_command(container["command"][1:])
            listens = int(container["command"][container["command"].index("--metrics") + 1].split(":")[1])
            assert {"name": "metrics", "containerPort": listens} in container["ports"]
            assert {"name": "SPOKE_URL", "value": "file:///etc/spoke/url"} in container["env"]
            assert {"name": "url", "mountPath": "/etc/spoke", "readOnly": True} in container["volumeMounts"]


def test_the_service_leads_to_the_server_whose_claims_and_configuration_exist() -> None:
    (service,), (configuration,) = of_kind("Service"), of_kind("ConfigMap")
    server = workload("spoke-server")
    assert service["spec"]["selector"] == server["spec"]["template"]["metadata"]["labels"]
    assert service["metadata"]["name"] == server["spec"]["serviceName"]
    used = {
        volume["configMap"]["name"] for volume in server["spec"]["template"]["spec"]["volumes"] if "configMap" in volume
    }
    assert used == {configuration["metadata"]["name"]}
    ours = dict(line.split(None, 1) for line in configuration["data"]["valkey.conf"].splitlines())
    lines = [line for line in (FOLDER.parent / "redis.conf").read_text().splitlines() if re.match(r"[a-z]", line)]
    master = dict(line.split(None, 1) for line in lines)
    differ = {name for name in ours if ours[name] != master.get(name)}
    assert differ == {"dir", "maxmemory", "protected-mode", "aclfile"}, "the rest is as in deploy/redis.conf"


def test_the_grace_is_longer_than_the_agents() -> None:
    from spoke.agent.config import AgentConfig

    leave_s = AgentConfig(url="", pool="", node_id="").leave_s_max
    assert workload("spoke-agent")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > 2 * leave_s


def test_kustomize_builds_them() -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("there is no kubectl here")
    built = subprocess.run([kubectl, "kustomize", str(FOLDER)], capture_output=True, text=True, timeout=60, check=False)
    assert built.returncode == 0, built.stderr
    found = list(yaml.safe_load_all(built.stdout))
    assert len(found) == len(documents())
    assert {one["metadata"].get("namespace", one["metadata"]["name"]) for one in found} == {"spoke"}
    assert json.dumps(found).count("spoke:latest") == 3
