"""Claims: the official provisioner and Kubernetes' own controllers between the client and us."""

from __future__ import annotations

from typing import Any

import yaml

from cinderblock.core.api.meta import ObjectMeta
from cinderblock.core.kube.adapter import connect
from cinderblock.core.names import CSI_DRIVER, PARAMETER_VOLUME_TYPE, TOPOLOGY_NODE
from tools.bench.figures import Figure, percentile
from tools.bench.kinds import Claim
from tools.bench.load import Load, rate
from tools.bench.scale import Scale
from tools.bench.world import FAKE, NAMESPACE, NODE, World
from tools.modules import binary
from tools.paths import REPOSITORY
from tools.shell import say

_CLASS = "bench"
_PROVISIONER = "csi-provisioner"


def objects() -> list[dict[str, Any]]:
    """What the chart and the kubelet would have made."""
    driver = {"attachRequired": True, "podInfoOnMount": False, "volumeLifecycleModes": ["Persistent"]}
    node = {"name": CSI_DRIVER, "nodeID": NODE, "topologyKeys": [TOPOLOGY_NODE]}
    return [
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "CSIDriver",
            "metadata": {"name": CSI_DRIVER},
            "spec": driver,
        },
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "CSINode",
            "metadata": {"name": NODE},
            "spec": {"drivers": [node]},
        },
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": _CLASS},
            "provisioner": CSI_DRIVER,
            "reclaimPolicy": "Delete",
            "volumeBindingMode": "Immediate",
            "parameters": {PARAMETER_VOLUME_TYPE: FAKE},
        },
    ]


def provisioner_args(values: dict[str, Any], world: World) -> list[str]:
    """As the chart starts it, without its election and without capacity objects."""
    sidecars = values["sidecars"]
    return [
        f"--csi-address={world.folder / 'csi.sock'}",
        f"--kubeconfig={world.plane.kubeconfig}",
        f"--kube-api-qps={sidecars['kubeApiQps']}",
        f"--kube-api-burst={sidecars['kubeApiBurst']}",
        f"--retry-interval-start={sidecars['retryIntervalStart']}",
        f"--retry-interval-max={sidecars['retryIntervalMax']}",
        f"--timeout={sidecars['timeout']}",
        "--worker-threads=100",
        "--default-fstype=ext4",
        "--extra-create-metadata",
        "--strict-topology",
        "--immediate-topology",
        "--controller-publish-readonly",
    ]


def _claim(name: str) -> Claim:
    spec = {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": _CLASS,
        "resources": {"requests": {"storage": "1Gi"}},
    }
    return Claim(metadata=ObjectMeta(name=name, namespace=NAMESPACE), spec=spec)


def _bound(obj: Claim) -> bool:
    return obj.status.phase == "Bound"


async def claims(world: World, scale: Scale) -> list[Figure]:
    """One to warm up, then a burst."""
    values = yaml.safe_load((REPOSITORY / "deploy/helm/cinderblock/values.yaml").read_text())
    world.apply(objects())
    world.start(_PROVISIONER, [binary(_PROVISIONER), *provisioner_args(values, world)])
    say(f"  {scale.claims} claims at once")
    try:
        async with connect(world.plane.kubeconfig) as kube:
            load = Load(kube, Claim, NAMESPACE, _bound, timeout=180)
            async with load.watching():
                first = await load.create(_claim("claim-first"))
                burst = await load.burst([_claim(f"claim-{i}") for i in range(scale.claims)])
                await load.delete_all()
    finally:
        world.stop(_PROVISIONER)
    seconds = [t.seconds for t in burst]
    limits = f"kube-api-qps {values['sidecars']['kubeApiQps']}, burst {values['sidecars']['kubeApiBurst']}"
    return [
        Figure("claims, fake", "one claim, POST to Bound", first.seconds * 1000, "ms"),
        Figure("claims, fake", "burst", rate(burst), "per s", note=f"n={len(burst)}; {limits}"),
        Figure("claims, fake", "burst, p50", percentile(seconds, 50) * 1000, "ms"),
        Figure("claims, fake", "burst, p99", percentile(seconds, 99) * 1000, "ms"),
    ]
