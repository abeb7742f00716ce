"""What was asked for at a staging path or a target: small files beside the plugin's socket.

Whether something is mounted is the kernel's word alone. A record only remembers the arguments that a mount does
not show (access mode, flags), so that a repeated call can be told from a different one after a restart.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from enum import StrEnum
from pathlib import Path

from pydantic import ValidationError

from cinderblock.core.api.meta import Model
from cinderblock.csi.node.mountinfo import kernel_path


class RecordKind(StrEnum):
    STAGED = "staged"
    PUBLISHED = "published"


class Record(Model):
    kind: RecordKind
    volume_id: str
    path: str
    volume_mode: str
    access_mode: str
    fs_type: str = ""
    flags_digest: str = ""  # mount flags may hold secrets
    read_only: bool = False


def flags_digest(flags: tuple[str, ...]) -> str:
    return hashlib.sha256("\0".join(flags).encode()).hexdigest()[:16] if flags else ""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:40]


class Records:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _file(self, kind: RecordKind, volume_id: str, path: str) -> Path:
        return self._folder / kind / _digest(volume_id) / f"{_digest(kernel_path(path))}.json"

    def read(self, kind: RecordKind, volume_id: str, path: str) -> Record | None:
        return self._load(self._file(kind, volume_id, path))

    def _load(self, file: Path) -> Record | None:
        try:
            return Record.model_validate_json(file.read_bytes())
        except (FileNotFoundError, ValidationError):
            return None  # half-written by a power cut: then the mount speaks alone

    def write(self, record: Record) -> None:
        file = self._file(record.kind, record.volume_id, record.path)
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}")
        temporary.write_text(record.model_dump_json(by_alias=True))
        temporary.replace(file)

    def remove(self, kind: RecordKind, volume_id: str, path: str) -> None:
        file = self._file(kind, volume_id, path)
        file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # others of this volume are left, or it never was
            file.parent.rmdir()

    def of_volume(self, kind: RecordKind, volume_id: str) -> list[Record]:
        folder = self._folder / kind / _digest(volume_id)
        if not folder.is_dir():
            return []
        found = (self._load(file) for file in sorted(folder.glob("*.json")))
        return [record for record in found if record is not None]
