"""NodePublish, NodeUnpublish, growing and figures: what happens at and above a staged volume."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass

from cinderblock.core.api.volume import Use
from cinderblock.core.errors import (
    IncompatibleExists,
    InvalidRequest,
    NotReady,
    NotStaged,
    OperationPending,
    PreconditionFailed,
)
from cinderblock.core.process import Runner
from cinderblock.csi.capability import Capability
from cinderblock.csi.connectors.base import Device
from cinderblock.csi.node.filesystem import grow_filesystem
from cinderblock.csi.node.lookup import NodeVolumes
from cinderblock.csi.node.mountinfo import Mount, kernel_path, mount_at, read_mounts
from cinderblock.csi.node.mounts import Mounter, ensure_directory, ensure_file, remove_place, shows_device
from cinderblock.csi.node.publish_rules import PublishStep, decide_publish
from cinderblock.csi.node.records import Record, RecordKind, Records, flags_digest
from cinderblock.csi.node.stage import block_file
from cinderblock.csi.node.volumes import KeyLocks

_RESIZE_POLL = 1.0


@dataclass(frozen=True)
class PublishAsk:
    volume_id: str
    target: str
    staging_path: str
    capability: Capability
    flags: tuple[str, ...]  # checked
    read_only: bool


@dataclass(frozen=True)
class Figures:
    """Inodes are absent for a block volume."""

    total_bytes: int
    used_bytes: int | None = None
    available_bytes: int | None = None
    total_inodes: int | None = None
    used_inodes: int | None = None
    available_inodes: int | None = None


@dataclass(frozen=True)
class Publisher:
    volumes: NodeVolumes
    mounter: Mounter
    runner: Runner
    records: Records
    locks: KeyLocks

    async def publish(self, ask: PublishAsk) -> None:
        """Idempotent. Errors: NotFound, NotStaged, IncompatibleExists, PreconditionFailed, InvalidRequest."""
        async with self.locks.hold(("volume", ask.volume_id)):
            attachment = await self.volumes.attachment(ask.volume_id)
            device = await self.volumes.device(attachment)
            block = ask.capability.use is Use.BLOCK
            source = block_file(ask.staging_path) if block else ask.staging_path
            staged = mount_at(source)
            if staged is None or not shows_device(staged, device):
                raise NotStaged(f"volume {ask.volume_id} is not staged at {ask.staging_path}")
            read_only = ask.read_only or ask.capability.read_only or "ro" in ask.flags
            if block and read_only and not device.read_only:
                # Mount flags do not stop writes to a device node.
                raise PreconditionFailed("a block volume is read-only only when it is attached read-only")
            asked = self._record(ask, read_only=read_only)
            step = decide_publish(asked, self._published(ask.volume_id, device))
            mounted = mount_at(ask.target)
            if mounted is not None and not shows_device(mounted, device):
                raise IncompatibleExists(f"something else is mounted at {ask.target}: it is left alone")
            if mounted is not None and step is PublishStep.BIND:
                await self._adopt(asked, mounted)
                return
            if mounted is not None and (not read_only or "ro" in mounted.options):
                return
            if mounted is not None:  # died between the bind and its read-only
                await self.mounter.unmount(ask.target)
            await self._bind(asked, source, block=block)

    def _record(self, ask: PublishAsk, *, read_only: bool) -> Record:
        return Record(
            kind=RecordKind.PUBLISHED,
            volume_id=ask.volume_id,
            path=kernel_path(ask.target),
            volume_mode=ask.capability.volume_mode,
            access_mode=ask.capability.mode,
            fs_type=ask.capability.fs_type,
            flags_digest=flags_digest(ask.flags),
            read_only=read_only,
        )

    def _published(self, volume_id: str, device: Device) -> list[Record]:
        """Records whose target the kernel confirms."""
        shown = {m.path for m in read_mounts() if shows_device(m, device)}
        return [r for r in self.records.of_volume(RecordKind.PUBLISHED, volume_id) if r.path in shown]

    async def _adopt(self, asked: Record, mounted: Mount) -> None:
        """A mount of ours whose record is lost: what the kernel shows must fit."""
        if asked.read_only != ("ro" in mounted.options):
            raise IncompatibleExists(f"the volume is published at {asked.path} with other arguments")
        self.records.write(asked)

    async def _bind(self, asked: Record, source: str, *, block: bool) -> None:
        self.records.write(asked)
        place = ensure_file(asked.path) if block else ensure_directory(asked.path)
        try:
            await self.mounter.bind(source, place, read_only=asked.read_only and not block)
        except Exception:
            if mount_at(place) is None:
                remove_place(place)
                self.records.remove(RecordKind.PUBLISHED, asked.volume_id, asked.path)
            raise

    async def unpublish(self, volume_id: str, target: str) -> None:
        """Idempotent; afterwards the target is gone. Errors: VolumeInUse, PreconditionFailed, InvalidRequest."""
        async with self.locks.hold(("volume", volume_id)):
            mounted = mount_at(target)
            if mounted is not None:
                known = self.records.read(RecordKind.PUBLISHED, volume_id, target)
                if known is None and not await self.volumes.is_ours(mounted):
                    raise PreconditionFailed(f"{target} is a mount that this driver did not make")
                await self.mounter.unmount(target)
            remove_place(target)
            self.records.remove(RecordKind.PUBLISHED, volume_id, target)

    async def expand(self, volume_id: str, path: str, required_bytes: int, answer_by: float) -> int:
        """Grow what is at `path` to its device; returns the device's size.

        Errors: NotFound (the volume, or not on that path), NotReady (the device has not grown yet).
        """
        await self.volumes.shown_at(volume_id, path)
        attachment = await self.volumes.attachment(volume_id)
        while True:
            async with (
                self.locks.hold(("volume", volume_id)),
                self.locks.hold(attachment.volume_key),
            ):
                attachment = await self.volumes.fresh(attachment)
                device = await self.volumes.prove(attachment)
                if device.size_bytes >= required_bytes:
                    await self._grow(volume_id, path)
                    return device.size_bytes
            left = answer_by - time.monotonic()
            if left <= 0:
                raise NotReady(f"the device has {device.size_bytes} bytes, not yet {required_bytes}")
            await self._next_change(attachment.metadata.resource_version, attachment.name, volume_id, left)

    async def _next_change(self, version: str, name: str, volume_id: str, left: float) -> None:
        attachment = await self.volumes.attachment(volume_id)
        try:
            await self.volumes.cache.until(
                attachment,
                lambda seen: True if seen is None or seen.metadata.resource_version != version else None,
                answer_by=time.monotonic() + min(left, _RESIZE_POLL),
                pending=lambda _: name,
            )
        except OperationPending:
            return

    async def _grow(self, volume_id: str, path: str) -> None:
        device, mount = await self.volumes.shown_at(volume_id, path)
        if mount.root != "/" or mount.fs_type not in ("ext4", "xfs"):
            return  # a device node: the device itself has grown
        if "ro" in mount.super_options:
            return
        await grow_filesystem(self.runner, device, mount.fs_type, mount.path)

    async def figures(self, volume_id: str, path: str) -> Figures:
        """Errors: NotFound (the volume, or not on that path)."""
        device, mount = await self.volumes.shown_at(volume_id, path)
        if mount.device != device.number:
            return Figures(total_bytes=device.size_bytes)
        return await asyncio.to_thread(_filesystem_figures, path)


def _filesystem_figures(path: str) -> Figures:
    # On a descriptor that was opened without following a link, so that no path can be exchanged under us.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidRequest(f"{path}: {os.strerror(error.errno or 0)}") from None
    try:
        found = os.fstatvfs(descriptor)
    finally:
        os.close(descriptor)
    return Figures(
        total_bytes=found.f_blocks * found.f_frsize,
        used_bytes=(found.f_blocks - found.f_bfree) * found.f_frsize,
        available_bytes=found.f_bavail * found.f_frsize,
        total_inodes=found.f_files,
        used_inodes=found.f_files - found.f_ffree,
        available_inodes=found.f_favail,
    )
