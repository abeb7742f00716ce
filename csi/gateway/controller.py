"""The gateway as the Controller service sees it: all parts over one set of caches."""

from __future__ import annotations

from cinderblock.core.clock import Clock
from cinderblock.core.kube.port import Kube
from cinderblock.csi.gateway.attachments import AttachmentGateway
from cinderblock.csi.gateway.caches import Caches
from cinderblock.csi.gateway.capacity import CapacityGateway
from cinderblock.csi.gateway.create import CreateGateway
from cinderblock.csi.gateway.listing import VolumeListing
from cinderblock.csi.gateway.volumes import VolumeGateway
from cinderblock.csi.work import KeyedWork


class ControllerGateway:
    """`namespace` is the release namespace, where all that CSI makes lives."""

    def __init__(self, kube: Kube, namespace: str, clock: Clock) -> None:
        self.caches = Caches(kube, clock)
        self.work = KeyedWork("csi-controller")
        self.volumes = VolumeGateway(kube, self.caches, self.work)
        self.creating = CreateGateway(kube, self.caches, self.work, namespace)
        self.attachments = AttachmentGateway(kube, self.caches, self.work, self.volumes, namespace)
        self.listing = VolumeListing(self.caches.volumes.store)
        self.capacity = CapacityGateway(self.caches)
