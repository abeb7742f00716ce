"""What the contract suite and the file driver's own tests need to know of the file driver."""

import contextlib
import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from loop_mount import loop_device

from cinderblock.core.clock import SystemClock
from cinderblock.core.process import Runner, SystemRunner
from cinderblock.drivers.base import DriverContext, VolumeRef
from cinderblock.drivers.file import FileConfig, FileDriver


class FileSubject:
    pool = None
    node = "n1"
    foreign_node = "n2"

    def __init__(self, root: Path, *, runner: Runner | None = None, **config: Any) -> None:
        self.root = root
        self.config = FileConfig.model_validate(config)
        self.context = DriverContext(
            backend="local",
            node=self.node,
            pools_root=root,
            runner=runner or SystemRunner(),
            clock=SystemClock(),
        )

    @property
    def folder(self) -> Path:
        return self.root / self.config.directory

    def image(self, ref: VolumeRef) -> Path:
        return self.folder / "volumes" / f"{ref.object_name}.img"

    def new_driver(self) -> FileDriver:
        return FileDriver(self.config, self.context)

    def read(self, ref: VolumeRef, offset: int, length: int) -> bytes | None:
        with self.image(ref).open("rb") as file:
            return os.pread(file.fileno(), length, offset)

    def write(self, ref: VolumeRef, offset: int, data: bytes) -> None:
        with self.image(ref).open("r+b") as file:
            os.pwrite(file.fileno(), data, offset)
            os.fsync(file.fileno())

    async def half_make(self, ref: VolumeRef) -> None:
        (self.folder / "volumes" / f"{ref.object_name}.img.new").write_bytes(secrets.token_bytes(1 << 20))

    def hide_marker(self) -> bool:
        (self.folder / ".cinderblock-pool").rename(self.folder / "marker-away")
        return True

    def show_marker(self) -> None:
        (self.folder / "marker-away").rename(self.folder / ".cinderblock-pool")

    def hold_open(self, ref: VolumeRef) -> contextlib.AbstractAsyncContextManager[None] | None:
        if os.geteuid() != 0:
            return None

        @contextlib.asynccontextmanager
        async def held() -> AsyncIterator[None]:
            with loop_device(self.image(ref)):
                yield

        return held()
