"""RBAC measured: what our accounts asked of the API server while the chart lived, beside what they are granted.

Runs last in this folder, so that the log holds everything before; alone, it lives through the essentials first.
"""

from __future__ import annotations

import subprocess

import pytest
import yaml
from audit_log import Right, granted, requests, unused
from chart_world import CHART, NAMESPACE, RELEASE, VOLUMES, ChartWorld
from tools.demo import tour

pytestmark = [pytest.mark.cluster, pytest.mark.root, pytest.mark.timeout(900)]

ACCOUNTS = {f"cinderblock-{name}" for name in ("controller", "host", "node", "hooks")}

# Granted, and not asked for in every run: each with the path that needs it.
_RELIST = "reflectors list where the API server does not stream its answer to a watch"
_SIDECAR = "the official sidecar's documented need"
NEEDED: dict[str, dict[str, str]] = {
    "cinderblock-controller": {
        "create pools.cinderblock.io": "operator/host: pools of network backends",
        "delete pools.cinderblock.io": "operator/control/pools.py: a node that is gone; operator/host/pools.py",
        "get pools.cinderblock.io": "operator/host/creates.py, csi/gateway/waiting.py: fresh reads",
        "get nodes": "operator/control/nodes.py: is the node gone, by a fresh read",
        "get snapshots.cinderblock.io": "operator/control/volumes.py: a source by a fresh read",
        "get storagenodes.cinderblock.io": "operator/control/attachments.py, csi/gateway/waiting.py: fresh reads",
        "get volumetypes.cinderblock.io": "csi/gateway/waiting.py: a miss is confirmed",
        "get backends.cinderblock.io": "operator/host/backends.py: a miss is confirmed",
        "get persistentvolumes": "operator/control/volumes.py and csi/gateway/create.py: fresh reads before effects",
        "get persistentvolumeclaims": "operator/control/claims.py, csi/gateway/claims.py",
        "patch attachments/status.cinderblock.io": "operator/control/attachments.py: fences; network backends",
        "delete attachments.cinderblock.io in cinderblock": "csi/gateway/attachments.py: detach",
        "get attachments.cinderblock.io": "operator/host/exports.py, csi/gateway/attachments.py: fresh reads",
        "patch volumes.cinderblock.io": "finalizers, growing a Volume",
        "patch attachments.cinderblock.io": "operator/control/attachments.py: finalizer and label",
        "patch events": "core/kube/events.py: repeats are counted",
        "create events": "core/kube/events.py",
        "delete volumes.cinderblock.io": "csi/gateway/volumes.py, operator/control/claims.py",
        **dict.fromkeys(
            (
                "list csinodes.storage.k8s.io",
                "list csistoragecapacities.storage.k8s.io in cinderblock",
                "list persistentvolumeclaims",
                "list persistentvolumes",
                "list nodes",
                "list pods",
                "list storageclasses.storage.k8s.io",
                "list volumeattachments.storage.k8s.io",
            ),
            _RELIST,
        ),
        **dict.fromkeys(
            (
                "get csinodes.storage.k8s.io",
                "get storageclasses.storage.k8s.io",
                "get volumeattachments.storage.k8s.io",
                "get volumeattributesclasses.storage.k8s.io",
            ),
            _SIDECAR,
        ),
        "patch persistentvolumeclaims": "resizer: a claim that grows",
        "patch persistentvolumeclaims/status": "resizer: a claim that grows",
        "update persistentvolumeclaims": "provisioner: a selected node without room is taken back",
        "update persistentvolumes": "provisioner: the finalizer that honours the reclaim policy",
        "delete persistentvolumes": "provisioner: reclaim policy Delete",
        "delete csistoragecapacities.storage.k8s.io in cinderblock": "provisioner: a class or a node that is gone",
        "update csistoragecapacities.storage.k8s.io in cinderblock": "provisioner: room that changed",
    },
    "cinderblock-host": {
        "get pools.cinderblock.io": "operator/host/creates.py, operator/host/pools.py: fresh reads",
        "get storagenodes.cinderblock.io": "operator/host/exports.py: initiator facts of network exports",
        "get backends.cinderblock.io": "operator/host/backends.py: a miss is confirmed",
        "patch volumes.cinderblock.io": "operator/host/volumes.py: the finalizer, off and on",
        "create events": "core/kube/events.py: what went wrong on this node",
        "patch events": "core/kube/events.py: repeats are counted",
    },
    "cinderblock-node": {
        "patch storagenodes.cinderblock.io": "csi/node/storage_node.py: a node that came back with another UID",
        "create events": "csi/node: what went wrong on this node",
        "patch events": "core/kube/events.py: repeats are counted",
    },
    "cinderblock-hooks": {
        "create customresourcedefinitions.apiextensions.k8s.io": "an upgrade that brings a new kind",
        **dict.fromkeys(
            (
                "get attachments.cinderblock.io",
                "patch attachments.cinderblock.io",
                "delete attachments.cinderblock.io",
                "get snapshots.cinderblock.io",
                "patch snapshots.cinderblock.io",
                "delete snapshots.cinderblock.io",
                "get backends.cinderblock.io",
                "patch backends.cinderblock.io",
                "get pools.cinderblock.io",
                "patch pools.cinderblock.io",
                "delete pools.cinderblock.io",
            ),
            "cli/hooks.py: a forced uninstall drops whatever is there",
        ),
        "get secrets in cinderblock": "cli/helm_record.py: after a refused uninstall",
        "patch secrets in cinderblock": "cli/helm_record.py: after a refused uninstall",
    },
}
# Granted in all namespaces although such a run may use it in the release's alone.
_ANY_NAMESPACE = "people make Volumes and Attachments in every namespace"
NEEDED_EVERYWHERE: dict[str, dict[str, str]] = {
    "cinderblock-controller": dict.fromkeys(
        (
            "delete volumes.cinderblock.io",
            "get attachments.cinderblock.io",
            "get volumes.cinderblock.io",
            "patch attachments.cinderblock.io",
            "patch volumes.cinderblock.io",
            "patch volumes/status.cinderblock.io",
            "patch attachments/status.cinderblock.io",
            "create events",
            "patch events",
        ),
        _ANY_NAMESPACE,
    ),
    "cinderblock-hooks": {
        f"{verb} {kind}.cinderblock.io": "cli/hooks.py: a forced uninstall drops whatever is there"
        for verb in ("get", "patch", "delete")
        for kind in ("volumes", "attachments", "snapshots")
    },
    "cinderblock-host": dict.fromkeys(
        (
            "get attachments.cinderblock.io",
            "get volumes.cinderblock.io",
            "patch attachments.cinderblock.io",
            "patch volumes.cinderblock.io",
            "patch volumes/status.cinderblock.io",
            "patch attachments/status.cinderblock.io",
            "create events",
            "patch events",
        ),
        _ANY_NAMESPACE,
    ),
    "cinderblock-node": dict.fromkeys(
        (
            "get attachments.cinderblock.io",
            "get volumes.cinderblock.io",
            "patch attachments/status.cinderblock.io",
            "create events",
            "patch events",
        ),
        _ANY_NAMESPACE,
    ),
}


def test_every_request_is_allowed_and_every_right_is_needed(world: ChartWorld) -> None:
    _live(world)
    made = list(requests(world.audit, NAMESPACE))
    refused = [
        f"{r.account}: {r.right} ({r.code} {r.uri})" for r in made if r.code in (401, 403) and not r.unbound
    ]
    assert not refused, "\n".join(sorted(set(refused)))
    assert {request.account for request in made} == ACCOUNTS

    shown = subprocess.run(
        [world.kube.helm_binary, "template", RELEASE, CHART, "--namespace", NAMESPACE],
        capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip
    rights = granted([doc for doc in yaml.safe_load_all(shown) if doc], NAMESPACE)
    problems = []
    for account in sorted(ACCOUNTS):
        used: set[Right] = {request.right for request in made if request.account == account}
        never, too_wide = unused(rights[account], used, NAMESPACE)
        known, everywhere = NEEDED.get(account, {}), NEEDED_EVERYWHERE.get(account, {})
        problems += [f"{account}: granted, never used: {r}" for r in sorted(never) if str(r) not in known]
        problems += [f"{account}: wider than used: {r}" for r in sorted(too_wide) if str(r) not in everywhere]
        words = {str(right) for right in rights[account]}
        problems += [f"{account}: not granted any more: {r}" for r in {*known, *everywhere} - words]
    assert not problems, "\n".join(problems)


def _live(world: ChartWorld) -> None:
    if any(
        r.account == "cinderblock-hooks" and r.right.verb == "delete"
        for r in requests(world.audit, NAMESPACE)
    ):
        return
    world.ensure_installed()
    tour.bare_volume(world.kube)
    tour.filesystem_claim(world.kube)
    tour.block_claim(world.kube)
    tour.standalone_attachment(world.kube, lambda node, script: world.on_node(script))
    world.install("uninstall.force=true")
    world.kube.kubectl("delete", "pod", "--all", "-n", "default", "--timeout=60s", timeout=70)
    assert world.names(VOLUMES)
    world.uninstall()
