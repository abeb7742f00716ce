"""This node's StorageNode: its initiator facts for the volume hosts, owned by the Node object."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from cinderblock.core.api.builtin import Node
from cinderblock.core.api.meta import ObjectMeta, OwnerReference
from cinderblock.core.api.node import StorageNode
from cinderblock.core.kube.port import Conflict, Kube, ObjectExists, ObjectNotFound

_ADDRESS_TYPES = ("InternalIP", "ExternalIP")
_TRIES = 5

_log = logging.getLogger(__name__)


def read_boot_id() -> str:
    """Changes with each boot of the kernel, with nothing else."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def storage_node_of(node: Node, *, boot_id: str, protocols: Iterable[str]) -> StorageNode:
    """What should stand, from the Node as it is now. Pure."""
    owner = OwnerReference(api_version=node.API_VERSION, kind=node.KIND, name=node.name, uid=node.uid)
    empty = StorageNode(metadata=ObjectMeta(name=node.name, owner_references=(owner,)))
    return empty.with_(
        status=empty.status.with_(
            boot_id=boot_id,
            node_uid=node.uid,
            protocols=tuple(sorted(protocols)),
            addresses=tuple(a.address for a in node.status.addresses if a.type in _ADDRESS_TYPES),
        )
    )


async def report_storage_node(
    kube: Kube, node_name: str, *, boot_id: str, protocols: Iterable[str]
) -> StorageNode:
    """Make or correct it; writes nothing when it says all that already.

    Errors: ObjectNotFound (no such Node), KubeError.
    """
    protocols = tuple(protocols)
    for _ in range(_TRIES):
        node = await kube.get(Node, node_name)
        wanted = storage_node_of(node, boot_id=boot_id, protocols=protocols)
        try:
            try:
                known = await kube.get(StorageNode, node_name)
            except ObjectNotFound:
                known = await kube.create(wanted)
            owners = wanted.metadata.owner_references
            if known.metadata.owner_references != owners:
                known = await kube.update(
                    known, known.with_(metadata=known.metadata.with_(owner_references=owners))
                )
            facts = wanted.status
            status = known.status.with_(
                boot_id=facts.boot_id,
                node_uid=facts.node_uid,
                protocols=facts.protocols,
                addresses=facts.addresses,
            )
            return await kube.update_status(known, known.with_(status=status))
        except (Conflict, ObjectExists, ObjectNotFound) as error:
            _log.info("StorageNode %s changed meanwhile: %s", node_name, error)
    raise Conflict(f"StorageNode {node_name} keeps changing")
