"""The stable names of devices: /dev/cinderblock/<attachment uid>, symbolic links that are replaced in one step."""

from __future__ import annotations

import re
from pathlib import Path

_UID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9-]{0,63}$")
_TEMPORARY = ".new-"


class DeviceLinks:
    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, uid: str) -> Path:
        if not _UID.match(uid):
            raise ValueError(f"{uid!r} is no UID")
        return self._root / uid

    def target(self, uid: str) -> Path | None:
        try:
            return self.path(uid).readlink()
        except OSError:
            return None

    def point(self, uid: str, device: Path) -> Path:
        link = self.path(uid)
        if self.target(uid) != device:
            self._root.mkdir(mode=0o755, exist_ok=True)
            temporary = self._root / f"{_TEMPORARY}{uid}"
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(device)
            temporary.replace(link)
        return link

    def remove(self, uid: str) -> None:
        self.path(uid).unlink(missing_ok=True)

    def uids(self) -> list[str]:
        if not self._root.is_dir():
            return []
        return sorted(e.name for e in self._root.iterdir() if e.is_symlink() and _UID.match(e.name))
