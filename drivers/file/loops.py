"""Which loop devices hold a file of ours."""

from __future__ import annotations

import os

from cinderblock.core.loops import backing_of, bound_loops


def loops_of(status: os.stat_result) -> list[str]:
    """Those that hold the file of this stat, by inode: names lie across mount namespaces and renames."""
    return _holders(status, None)


def holders_of(status: os.stat_result, name: str) -> list[str]:
    """Devices that hold the file, or a file of this name where only the name can be seen.

    For names that are unique in the world, such as our images': then a name in another mount namespace, or one
    that a missing device node hides the inode of, counts too.
    """
    return _holders(status, name)


def _holders(status: os.stat_result, name: str | None) -> list[str]:
    backing = backing_of(status)
    return [
        str(loop.path)
        for loop in bound_loops()
        if loop.file_name == name or (loop.status is not None and loop.status.backing == backing)
    ]
