"""The file driver: volumes are image files in a folder of one node, reached there by a loop device.

This is the asynchronous face. What touches the disk is in `images` (volumes), `place` (the pool's folder) and
`pool_image` (a pool with its own filesystem), run in threads of the driver's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from cinderblock.core.api.attachment import Connection, ConnectionProtocol, LocalConnection
from cinderblock.core.errors import BackendUnavailable, InvalidRequest, NotFound, NotSupported
from cinderblock.drivers.base import (
    CreateVolume,
    DriverConfig,
    DriverContext,
    ExportRequest,
    PoolReport,
    VolumeInfo,
    VolumeRef,
)
from cinderblock.drivers.file.config import FileConfig
from cinderblock.drivers.file.images import Images, image_name
from cinderblock.drivers.file.place import VOLUMES, Place, open_place
from cinderblock.drivers.file.pool_image import ImagePlace, PoolImageMount
from cinderblock.drivers.file.worker import Worker

T = TypeVar("T")
_OPEN_DEADLINE = 60.0
_CALL_DEADLINE = 60.0  # thick volumes and deletions of large images take longest
_LIST_DEADLINE = 60.0
_CLOSE_DEADLINE = 10.0


@dataclass(frozen=True)
class _Opened:
    worker: Worker
    place: Place
    images: Images
    image_place: ImagePlace | None


class FileDriver:
    Config: ClassVar[type[DriverConfig]] = FileConfig
    node_local: ClassVar[bool] = True
    online_extend: ClassVar[bool] = True

    def __init__(self, config: DriverConfig, context: DriverContext) -> None:
        if not isinstance(config, FileConfig):
            raise TypeError(f"FileConfig expected, not {type(config).__name__}")
        self._config = config
        self._context = context
        self._opened: _Opened | None = None

    async def open(self, known_pool_ids: dict[str | None, str]) -> None:
        if self._opened is not None:
            return
        if self._context.node is None:
            raise InvalidRequest("the file driver needs a node: set spec.nodeSelector of the Backend")
        known = known_pool_ids.get(None)
        root, directory = self._context.pools_root, self._config.directory
        settings = self._config.pool_image
        worker = Worker(f"file-{self._context.backend}")
        mount: PoolImageMount | None = None
        if settings is not None:
            mount = PoolImageMount(root, directory, settings, runner=self._context.runner, worker=worker)
        try:
            if mount is not None:
                await mount.bring_up(known)
            place = await worker.run(
                lambda: open_place(root, directory, known, mounted=mount is not None),
                timeout=_OPEN_DEADLINE,
                abandoned=Place.close,
            )
        except BaseException:
            idle = await worker.close(_CLOSE_DEADLINE)
            if idle and mount is not None and mount.place is not None:
                mount.place.close()
            raise
        self._opened = _Opened(worker, place, Images(place), mount.place if mount is not None else None)

    async def close(self) -> None:
        opened, self._opened = self._opened, None
        if opened is None:
            return
        if not await opened.worker.close(_CLOSE_DEADLINE):
            return  # a thread still works on these descriptors: the lock goes with the process
        opened.place.close()
        if opened.image_place is not None:
            opened.image_place.close()

    async def pools(self) -> Sequence[PoolReport]:
        place, images = self._ready().place, self._ready().images
        total_bytes, free_bytes, allocated_bytes, provisioned_bytes = await self._run(images.usage)
        return [
            PoolReport(
                name=None,
                pool_id=place.pool_id,
                total_bytes=total_bytes,
                free_bytes=free_bytes,
                allocated_bytes=allocated_bytes,
                provisioned_bytes=provisioned_bytes,
                thin=True,
                capabilities={
                    "thin_provisioning_support": "true",
                    "thick_provisioning_support": "true",
                    "multiattach": "false",
                    "reflink": str(place.reflink).lower(),
                    "pool_image": str(self._config.pool_image is not None).lower(),
                },
            )
        ]

    async def create_volume(self, request: CreateVolume) -> VolumeInfo:
        if request.pool is not None:
            raise InvalidRequest(f"backend {self._context.backend} has one pool without a name")
        return await self._run(lambda: self._ready().images.create(request), request.ref)

    async def seal_volume(self, ref: VolumeRef) -> None:
        await self._run(lambda: self._ready().images.seal(ref), ref)

    async def delete_volume(self, ref: VolumeRef) -> None:
        await self._run(lambda: self._ready().images.delete(ref), ref)

    async def get_volume(self, ref: VolumeRef) -> VolumeInfo | None:
        return await self._run(lambda: self._ready().images.get(ref), ref)

    async def extend_volume(self, ref: VolumeRef, size_bytes: int) -> VolumeInfo:
        return await self._run(lambda: self._ready().images.extend(ref, size_bytes), ref)

    async def inventory(self) -> Sequence[VolumeInfo]:
        return await self._run(self._ready().images.inventory)

    async def export(self, ref: VolumeRef, request: ExportRequest) -> Connection:
        node = self._context.node
        if request.initiator.node != node:
            raise NotSupported(
                f"volume {ref.object_name} is a file of node {node}; node {request.initiator.node} cannot"
                " reach it"
            )
        info = await self.get_volume(ref)
        if info is None:
            raise NotFound(f"volume {ref.object_name} does not exist")
        return Connection(
            protocol=ConnectionProtocol.LOCAL,
            generation=request.generation,
            size_bytes=info.size_bytes,
            read_only=request.read_only,
            local=LocalConnection(
                path=f"{self._config.directory}/{VOLUMES}/{image_name(ref)}", identity=ref.object_name
            ),
        )

    async def unexport(self, ref: VolumeRef, node: str) -> None:
        """The node's loop device is all there is, and only the node lets go of it."""

    def _ready(self) -> _Opened:
        if self._opened is None:
            raise BackendUnavailable(f"backend {self._context.backend} is not open")
        return self._opened

    async def _run(self, call: Callable[[], T], ref: VolumeRef | None = None) -> T:
        opened = self._ready()
        key = None if ref is None else ref.object_name
        return await opened.worker.run(
            call, key=key, timeout=_LIST_DEADLINE if ref is None else _CALL_DEADLINE
        )
