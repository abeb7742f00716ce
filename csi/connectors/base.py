"""The contract of connectors.

A connector knows one protocol. It keeps nothing in memory: what is connected is read from the kernel each time,
so a fresh process sees what the one before it left. Every method is idempotent; all of them are called under the
lock of the volume (csi/node/volumes.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cinderblock.core.api.attachment import Connection, ConnectionProtocol
from cinderblock.core.errors import PreconditionFailed


class WrongDevice(PreconditionFailed):
    """What is at the place is not what the connection speaks of: never use it."""

    default_reason = "WrongDevice"


@dataclass(frozen=True)
class Device:
    """A block device of this node."""

    path: Path  # the kernel's node, such as /dev/loop3; never kept across a restart
    number: tuple[int, int]  # major, minor
    size_bytes: int
    read_only: bool


class Connector(Protocol):
    protocol: ConnectionProtocol

    async def connect(self, connection: Connection) -> Device:
        """Bring the device up and prove its identity, or prove it again. Twice = the same device.

        Errors: WrongDevice; BackendUnavailable (not there, may pass); VolumeInUse (connected in another mode and
        held); BackendFault.
        """

    async def find(self, connection: Connection) -> Device | None:
        """The device of that connection, if the kernel has it. Fit for letting go; before use, `connect` again."""

    async def disconnect(self, connection: Connection) -> None:
        """Let the device go. Not connected = success. Errors: VolumeInUse with what holds it."""

    async def resize(self, connection: Connection) -> Device:
        """Take over a size that grew at the backend. Errors: as `connect`."""

    async def holders(self, device: Device) -> Sequence[str]:
        """What the kernel knows to sit on top of the device: device-mapper, md, ... (mounts are seen elsewhere)."""

    async def strays(self) -> Sequence[tuple[str, Device]]:
        """Every device of ours with the name it was connected under (`stray_name`)."""

    def stray_name(self, connection: Connection) -> str:
        """The name that `strays` gives to the device of that connection."""

    async def disconnect_stray(self, name: str, device: Device) -> None:
        """Let go of a device whose Attachment is gone. Errors: VolumeInUse."""
