"""CSI topology segments and node names.

The one segment that we know is the node. Its value must fit a label, so a long node name is carried as the same
hash that names its volume host.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from cinderblock.core.api.backend import Pool
from cinderblock.core.api.volume import VolumeTopology
from cinderblock.core.errors import InvalidRequest
from cinderblock.core.names import TOPOLOGY_NODE, host_name
from cinderblock.csi.pb import csi_pb2

_PREFERRED_MAX = 16


def topology_of(node: str) -> csi_pb2.Topology:
    """Where a node is; the answer of NodeGetInfo and of a volume that only this node reaches."""
    return csi_pb2.Topology(segments={TOPOLOGY_NODE: host_name(node)})


def reachable_from(pool: Pool | None) -> list[csi_pb2.Topology]:
    """accessible_topology of a volume in that pool; empty = from everywhere."""
    return [topology_of(pool.spec.node)] if pool is not None and pool.spec.node else []


def parse_requirement(
    requirement: csi_pb2.TopologyRequirement, resolve: Callable[[str], str | None], known: Collection[str]
) -> VolumeTopology | None:
    """Node names of a requirement; None where it demands nothing.

    `resolve` turns a segment's value into a node name. A requirement that names all `known` nodes is none, so
    that a large cluster does not end up in every Volume; one that leaves any of them out stands.
    Errors: InvalidRequest for a segment that is not ours.
    """
    requisite = _nodes(requirement.requisite, resolve)
    preferred = _nodes(requirement.preferred, resolve)
    if len(requisite) >= len(known) > 1 and set(requisite).issuperset(known):
        requisite = ()
    if not requisite and not preferred:
        return None
    return VolumeTopology(requisite=requisite, preferred=preferred[:_PREFERRED_MAX])


def node_segment(topology: csi_pb2.Topology) -> str | None:
    """The node segment's value; None for an empty topology. Errors: InvalidRequest."""
    if not topology.segments:
        return None
    value = topology.segments.get(TOPOLOGY_NODE)
    if value is None or len(topology.segments) > 1:
        raise InvalidRequest(
            f"only the topology key {TOPOLOGY_NODE} is known, not {sorted(topology.segments)}"
        )
    return str(value)


def _nodes(topologies: Iterable[csi_pb2.Topology], resolve: Callable[[str], str | None]) -> tuple[str, ...]:
    values = (node_segment(t) for t in topologies)
    return tuple(dict.fromkeys(resolve(v) or v for v in values if v is not None))
