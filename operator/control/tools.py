"""What the leader's reconcilers share, composed once by the role."""

from __future__ import annotations

from dataclasses import dataclass

from cinderblock.core.clock import Clock
from cinderblock.core.kube.events import EventRecorder
from cinderblock.core.kube.port import Kube
from cinderblock.operator.control.liveness import HostLiveness
from cinderblock.operator.control.nodes import Nodes
from cinderblock.operator.engine.stores import Stores


@dataclass(frozen=True)
class Tools:
    """What the leader's reconcilers share."""

    kube: Kube
    stores: Stores
    clock: Clock
    recorder: EventRecorder
    nodes: Nodes
    liveness: HostLiveness
    epoch: int
    release_namespace: str
