"""The chart as helm renders it: lint, schema, Pod Security, RBAC without wildcards, everything with limits."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from tools import build
from tools.paths import REPOSITORY

CHART = REPOSITORY / "deploy" / "helm" / "cinderblock"


@pytest.fixture(scope="module")
def helm() -> Path:
    build.ensure(["helm"])
    return build.binary("helm")


def run(helm: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([helm, *argv], capture_output=True, text=True, timeout=60, check=False)


def render(helm: Path, *sets: str) -> list[dict[str, Any]]:
    args = [part for value in sets for part in ("--set", value)]
    done = run(helm, "template", "cinderblock", str(CHART), "--namespace", "cinderblock", *args)
    assert done.returncode == 0, done.stderr
    return [doc for doc in yaml.safe_load_all(done.stdout) if doc]


def of_kind(docs: list[dict[str, Any]], *kinds: str) -> list[dict[str, Any]]:
    return [doc for doc in docs if doc["kind"] in kinds]


def pod_specs(docs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        d["metadata"]["name"]: d["spec"]["template"]["spec"]
        for d in of_kind(docs, "Deployment", "DaemonSet", "Job")
    }


def test_lint_is_clean(helm: Path) -> None:
    done = run(helm, "lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "sets",
    [
        ["controller.replicas=0"],
        ["logLevel=loud"],
        ["storageClass.fsType=ntfs"],
        ["sidecars.timeout=soon"],
        ["defaultBackend.overSubscriptionRatio=lots"],
        ["nosuchvalue=1"],
        ["kubeletPath=var/lib/kubelet"],
    ],
)
def test_wrong_values_are_refused_by_the_schema(helm: Path, sets: list[str]) -> None:
    done = run(helm, "template", "x", str(CHART), *(part for s in sets for part in ("--set", s)))
    assert done.returncode != 0
    assert sets[0].partition("=")[0].split(".")[0] in done.stderr


def test_every_switch_renders(helm: Path) -> None:
    for sets in (
        ["host.enabled=false"],
        ["storageClass.enabled=false", "defaultBackend.enabled=false", "defaultVolumeType.enabled=false"],
        ["rbac.create=false", "podDisruptionBudget.enabled=false"],
        ["uninstall.force=true", "storageClass.isDefault=true"],
        ["defaultBackend.driver=fake", "defaultBackend.nodeSelector=null"],
    ):
        assert render(helm, *sets)


def test_controller_passes_pod_security_restricted(helm: Path) -> None:
    specs = pod_specs(render(helm))
    for name in ("cinderblock-controller", "cinderblock-pre-upgrade", "cinderblock-pre-delete"):
        spec = specs[name]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not any("hostPath" in volume for volume in spec.get("volumes", []))
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}


def test_only_the_two_daemonsets_are_privileged(helm: Path) -> None:
    privileged = {
        name
        for name, spec in pod_specs(render(helm)).items()
        if any(c["securityContext"].get("privileged") for c in spec["containers"])
    }
    assert privileged == {"cinderblock-host", "cinderblock-node"}


def test_every_long_running_container_has_probes_requests_and_a_memory_limit(helm: Path) -> None:
    docs = of_kind(render(helm), "Deployment", "DaemonSet")
    assert len(docs) == 3
    for doc in docs:
        spec = doc["spec"]["template"]["spec"]
        assert spec["priorityClassName"].startswith("system-")
        for container in spec["containers"]:
            assert "livenessProbe" in container, container["name"]
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
            assert "memory" in container["resources"]["limits"]


def test_rbac_has_no_wildcards_and_no_secrets(helm: Path) -> None:
    roles = of_kind(render(helm), "ClusterRole", "Role")
    assert roles
    for role in roles:
        for rule in role["rules"]:
            words = rule["apiGroups"] + rule["resources"] + rule["verbs"]
            assert "*" not in words
            assert not {"pods/exec", "escalate", "bind", "impersonate"} & set(words)
            if "secrets" in words:  # helm's record of this release, for the hook of a refused uninstall
                assert role["kind"] == "Role"
                assert rule["resourceNames"] == ["sh.helm.release.v1.cinderblock.v1"]
                assert set(rule["verbs"]) == {"get", "patch"}


def test_node_tokens_get_no_write_beyond_status_and_their_storagenode(helm: Path) -> None:
    role = next(
        r for r in of_kind(render(helm), "ClusterRole") if r["metadata"]["name"] == "cinderblock-node"
    )
    writes = {
        resource
        for rule in role["rules"]
        if {"create", "patch", "update", "delete"} & set(rule["verbs"])
        for resource in rule["resources"]
    }
    assert writes == {"attachments/status", "storagenodes", "storagenodes/status", "events"}


def test_sidecars_carry_the_raised_limits(helm: Path) -> None:
    spec = pod_specs(render(helm))["cinderblock-controller"]
    args = {c["name"]: c.get("args", []) for c in spec["containers"]}
    for name in ("csi-provisioner", "csi-attacher", "csi-resizer"):
        assert {"--kube-api-qps=50", "--kube-api-burst=100", "--retry-interval-max=30s"} <= set(args[name])
    assert {"--extra-create-metadata", "--strict-topology", "--enable-capacity"} <= set(
        args["csi-provisioner"]
    )
    assert "--timeout=60s" not in args["csi-resizer"], "on the resizer it would override both specific ones"


def test_crds_are_kept_outside_the_templates(helm: Path) -> None:
    assert not of_kind(render(helm), "CustomResourceDefinition")
    shown = run(helm, "show", "crds", str(CHART)).stdout
    names = {doc["metadata"]["name"] for doc in yaml.safe_load_all(shown) if doc}
    assert {"volumes.cinderblock.io", "attachments.cinderblock.io", "pools.cinderblock.io"} <= names


def test_people_get_volumes_with_their_namespace_and_nothing_of_the_cluster(helm: Path) -> None:
    roles = {r["metadata"]["name"]: r for r in of_kind(render(helm), "ClusterRole")}
    view, edit = roles["cinderblock-view"], roles["cinderblock-edit"]
    for role in (view, edit):
        assert {r for rule in role["rules"] for r in rule["resources"]} == {
            "volumes",
            "attachments",
            "snapshots",
        }
    assert {v for rule in view["rules"] for v in rule["verbs"]} == {"get", "list", "watch"}
    prefix = "rbac.authorization.k8s.io/aggregate-to-"
    assert {k.removeprefix(prefix) for k in edit["metadata"]["labels"] if k.startswith(prefix)} == {
        "edit",
        "admin",
    }


def test_nothing_is_mounted_below_what_spreads_to_the_node(helm: Path) -> None:
    """Such a mount would appear on the node at every start of the pod, and never go."""
    for name, spec in pod_specs(render(helm)).items():
        for container in spec["containers"]:
            mounts = container.get("volumeMounts", [])
            spread = [m["mountPath"] for m in mounts if m.get("mountPropagation") == "Bidirectional"]
            below = [
                m["mountPath"] for m in mounts if any(m["mountPath"].startswith(f"{s}/") for s in spread)
            ]
            assert not below, name
