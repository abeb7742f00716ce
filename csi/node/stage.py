"""NodeStage and NodeUnstage: a device becomes a mounted filesystem at the staging path, or, for block volumes, a
bind mount of its node in a file there. Both show in mountinfo, so nothing else has to be remembered.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cinderblock.core.api.attachment import Attachment, Formatted
from cinderblock.core.api.volume import Use
from cinderblock.core.errors import (
    NON_FINAL_CODES,
    IncompatibleExists,
    NotReady,
    OperationPending,
    PreconditionFailed,
    StorageError,
    VolumeInUse,
    grpc_code,
)
from cinderblock.core.kube.port import Conflict
from cinderblock.core.process import Runner
from cinderblock.csi.capability import Capability
from cinderblock.csi.connectors.base import Device
from cinderblock.csi.node.filesystem import (
    grow_filesystem,
    grow_unmounted,
    grows_mounted,
    make_filesystem,
    repair_if_marked,
)
from cinderblock.csi.node.lookup import NodeVolumes
from cinderblock.csi.node.mountinfo import device_node_number, mount_at, uses_of
from cinderblock.csi.node.mounts import Mounter, ensure_directory, ensure_file, remove_place, shows_device
from cinderblock.csi.node.probe import recognised
from cinderblock.csi.node.records import Record, RecordKind, Records, flags_digest
from cinderblock.csi.node.stage_rules import Plan, StageStep, plan_stage, waits_for_device
from cinderblock.csi.node.volumes import KeyLocks

T = TypeVar("T")
BLOCK_FILE = "device"
_POLL_FIRST, _POLL_LAST, _POLL_GROWTH = 0.02, 1.0, 1.5
_LONGEST_WAIT = 120.0
_REPORT_TRIES = 5


def block_file(staging_path: str) -> str:
    return f"{staging_path.rstrip('/')}/{BLOCK_FILE}"


@dataclass(frozen=True)
class StageAsk:
    volume_id: str
    path: str
    capability: Capability
    flags: tuple[str, ...] = ()  # checked


@dataclass
class _Ticket:
    """A NodeStage in work, which the opposite call takes back."""

    why: str = ""  # what it waits for
    taken_back: asyncio.Event = field(default_factory=asyncio.Event)

    def check(self) -> None:
        if self.taken_back.is_set():
            raise OperationPending("the volume is being unstaged")

    async def unless_taken_back(self, waiting: Coroutine[Any, Any, T]) -> T:
        """The result of something that only waits, or an end at once when NodeUnstage comes."""
        tasks = asyncio.ensure_future(waiting), asyncio.ensure_future(self.taken_back.wait())
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            self.check()
            return await tasks[0]
        finally:
            for task in tasks:
                task.cancel()


@dataclass
class Stager:
    volumes: NodeVolumes
    mounter: Mounter
    runner: Runner
    records: Records
    locks: KeyLocks
    boot_id: str
    _tickets: dict[tuple[str, str], list[_Ticket]] = field(default_factory=dict)

    def waits_for(self, ask: StageAsk) -> str:
        """Why a NodeStage of this volume and path is still in work; "" when it waits for nobody."""
        tickets = self._tickets.get((ask.volume_id, ask.path), [])
        return next((ticket.why for ticket in tickets if ticket.why), "")

    async def stage(self, ask: StageAsk) -> None:
        """Idempotent. It waits longer than one caller does: a repeated call joins it.

        Errors: NotFound, PreconditionFailed, IncompatibleExists, InvalidRequest: final, nothing staged by this
        call; NotReady, OperationPending, OperationTimeout: asked again.
        """
        try:
            await self._stage(ask, time.monotonic() + _LONGEST_WAIT)
        except IncompatibleExists:
            raise  # what an earlier, different call staged is in use
        except StorageError as error:
            if grpc_code(error) not in NON_FINAL_CODES:
                await self._leave_nothing(ask)
            raise

    async def _leave_nothing(self, ask: StageAsk) -> None:
        """After a final answer no NodeUnstage comes: what an earlier call left is taken down, unless in use."""
        for place in (block_file(ask.path), ask.path):
            mounted = mount_at(place)
            if mounted is None or not await self.volumes.is_ours(mounted):
                continue
            number = device_node_number(mounted) or mounted.device
            if uses_of(number) == [mounted.path]:
                await self.unstage(ask.volume_id, ask.path)

    async def _stage(self, ask: StageAsk, answer_by: float) -> None:
        with self._ticket(ask) as ticket:
            attachment = await self.volumes.attachment(ask.volume_id)
            delay = _POLL_FIRST
            while True:
                attachment = await self._connected(attachment, ask, ticket, answer_by)
                plan = await self._step(attachment, ask, ticket)
                if plan is None:
                    return
                ticket.why = plan.why
                if time.monotonic() >= answer_by:
                    raise NotReady(plan.why)
                # The Volume is not watched here; this is a volume's first mount, once in its life.
                await self._change_within(attachment, min(delay, answer_by - time.monotonic()))
                delay = min(_POLL_GROWTH * delay, _POLL_LAST)

    @contextlib.contextmanager
    def _ticket(self, ask: StageAsk) -> Iterator[_Ticket]:
        key = (ask.volume_id, ask.path)
        ticket = _Ticket()
        self._tickets.setdefault(key, []).append(ticket)
        try:
            yield ticket
        finally:
            self._tickets[key].remove(ticket)
            if not self._tickets[key]:
                del self._tickets[key]

    async def _connected(
        self, attachment: Attachment, ask: StageAsk, ticket: _Ticket, answer_by: float
    ) -> Attachment:
        """Waits, without any lock, until the agent has brought the device up."""

        def judge(seen: Attachment | None) -> Attachment | None:
            if seen is None:
                raise NotReady(f"attachment {attachment.name} is gone")
            wait = waits_for_device(seen, ask.capability, boot_id=self.boot_id)
            ticket.why = wait.why if wait is not None else ""
            return seen if wait is None else None

        return await ticket.unless_taken_back(
            self.volumes.cache.until(attachment, judge, answer_by=answer_by, pending=lambda _: ticket.why)
        )

    async def _change_within(self, attachment: Attachment, seconds: float) -> None:
        version = attachment.metadata.resource_version

        def judge(seen: Attachment | None) -> bool | None:
            return True if seen is None or seen.metadata.resource_version != version else None

        with contextlib.suppress(OperationPending):
            await self.volumes.cache.until(
                attachment, judge, answer_by=time.monotonic() + seconds, pending=lambda _: "unchanged"
            )

    async def _step(self, attachment: Attachment, ask: StageAsk, ticket: _Ticket) -> Plan | None:
        """One step, decided on fresh reads under the locks; None when the volume is staged."""
        async with (
            self.locks.hold(("volume", ask.volume_id)),
            self.locks.hold(attachment.volume_key),
        ):
            ticket.check()
            attachment, plan = await self._planned(attachment, ask)
            if plan.step is StageStep.WAIT:
                return plan
            device = await self.volumes.prove(attachment)
            if plan.step is StageStep.FORMAT:
                return await self._format(attachment, ask, device, plan)
            read_only = _read_only(attachment, ask)
            if ask.capability.use is Use.BLOCK:
                await self._stage_block(ask, device)
            else:
                await self._stage_mount(ask, device, plan.fs_type, read_only=read_only)
            return None

    async def _planned(self, attachment: Attachment, ask: StageAsk) -> tuple[Attachment, Plan]:
        """What the API server says now, and what follows from it."""
        attachment = await self.volumes.fresh(attachment)
        volume = await self.volumes.fresh_volume(attachment)
        if volume.status.handle != ask.volume_id:
            raise NotReady(f"Volume {volume.name} is {volume.status.handle} by now, not {ask.volume_id}")
        read_only = _read_only(attachment, ask)
        plan = plan_stage(attachment, volume, ask.capability, boot_id=self.boot_id, read_only=read_only)
        return attachment, plan

    async def _format(self, attachment: Attachment, ask: StageAsk, device: Device, plan: Plan) -> Plan:
        """Make the filesystem, unless a whole one lies there: then ours was made and not reported yet, or what
        the API server says is older than the data (a restored backup), and the data stays.

        Errors: VolumeInUse, PreconditionFailed (something else lies there).
        """
        if uses := uses_of(device.number):
            raise VolumeInUse(f"{device.path} is mounted at {uses[0]}: it is not formatted")
        refuse_if_held(device)
        found = await recognised(self.runner, device.path)
        if found not in ("", plan.fs_type):
            raise PreconditionFailed(f"{device.path} holds {found}: it is not formatted")
        if not found:
            # The device took its time: once more, directly before the one step that cannot be taken back.
            attachment, now = await self._planned(attachment, ask)
            if now != plan:
                return Plan(StageStep.WAIT, now.why or "what is to be done has just changed")
            await make_filesystem(self.runner, device, plan.fs_type)
        await self._report_formatted(attachment, plan.fs_type)
        return Plan(StageStep.WAIT, "the volume host has not recorded the new filesystem yet")

    async def _report_formatted(self, attachment: Attachment, fs_type: str) -> None:
        generation = attachment.status.generation
        for _ in range(_REPORT_TRIES):
            done = attachment.with_(
                status=attachment.status.with_(formatted=Formatted(type=fs_type, generation=generation))
            )
            try:
                await self.volumes.report(attachment, done)
                return
            except Conflict:
                attachment = await self.volumes.fresh(attachment)
                if attachment.status.generation != generation:
                    raise
        raise NotReady("the new filesystem could not be reported: the attachment keeps changing")

    def _record(self, ask: StageAsk, fs_type: str, *, read_only: bool) -> Record:
        return Record(
            kind=RecordKind.STAGED,
            volume_id=ask.volume_id,
            path=ask.path,
            volume_mode=ask.capability.volume_mode,
            access_mode=ask.capability.mode,
            fs_type=fs_type,
            flags_digest=flags_digest(ask.flags),
            read_only=read_only,
        )

    def _already(self, ask: StageAsk, device: Device, place: str, record: Record) -> bool:
        mounted = mount_at(place)
        if mounted is None:
            return False
        if not shows_device(mounted, device):
            raise PreconditionFailed(f"something else is mounted at {place}: it is left alone")
        known = self.records.read(RecordKind.STAGED, ask.volume_id, ask.path)
        if known is not None and known != record:
            raise IncompatibleExists(f"the volume is staged at {ask.path} with another capability")
        return True

    async def _stage_block(self, ask: StageAsk, device: Device) -> None:
        ensure_directory(ask.path)
        place = block_file(ask.path)
        record = self._record(ask, "", read_only=device.read_only)
        staged = self._already(ask, device, place, record)
        self.records.write(record)
        if not staged:
            await self.mounter.bind(str(device.path), ensure_file(place), read_only=False)

    async def _stage_mount(self, ask: StageAsk, device: Device, fs_type: str, *, read_only: bool) -> None:
        record = self._record(ask, fs_type, read_only=read_only)
        staged = self._already(ask, device, ask.path, record)
        self.records.write(record)
        if not staged:
            if not read_only and not uses_of(device.number):
                await repair_if_marked(self.runner, device, fs_type)
                await grow_unmounted(self.runner, device, fs_type)
            options = [f for f in ask.flags if f not in ("ro", "rw")]
            options.insert(0, "ro" if read_only else "rw")
            await self.mounter.mount(device, fs_type, ask.path, options)
        if read_only or not grows_mounted(fs_type):
            return
        try:
            await grow_filesystem(self.runner, device, fs_type, ask.path)
        except Exception:
            if not staged:  # an error leaves nothing staged by this call
                await self.mounter.unmount(ask.path)
            raise

    async def unstage(self, volume_id: str, path: str) -> None:
        """Idempotent; needs neither the Attachment nor the API server. Errors: VolumeInUse, PreconditionFailed."""
        for ticket in self._tickets.get((volume_id, path), ()):
            ticket.taken_back.set()
        async with self.locks.hold(("volume", volume_id)):
            record = self.records.read(RecordKind.STAGED, volume_id, path)
            for place in (block_file(path), path):
                mounted = mount_at(place)
                if mounted is None:
                    continue
                if record is None and not await self.volumes.is_ours(mounted):
                    raise PreconditionFailed(f"{place} is a mount that this driver did not make")
                await self.mounter.unmount(place)
            remove_place(block_file(path))
            self.records.remove(RecordKind.STAGED, volume_id, path)


def _read_only(attachment: Attachment, ask: StageAsk) -> bool:
    connection = attachment.status.connection
    return (
        attachment.spec.read_only
        or (connection is not None and connection.read_only)
        or ask.capability.read_only
        or "ro" in ask.flags
    )


def refuse_if_held(device: Device) -> None:
    """Errors: VolumeInUse when anything holds the device exclusively, in whatever mount namespace."""
    try:
        os.close(os.open(device.path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        raise VolumeInUse(f"{device.path} is in use: {os.strerror(error.errno or 0)}") from None
