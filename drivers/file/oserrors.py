"""What an error of the operating system means for a volume."""

from __future__ import annotations

import errno
import os

from cinderblock.core.errors import BackendUnavailable, OutOfCapacity, StorageError

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NOT_WRITABLE = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


def translate(error: OSError, folder: str, doing: str) -> StorageError:
    """The StorageError of an OSError. One that we cannot judge may have left something: BackendUnavailable."""
    what = f"{doing} in {folder}: {os.strerror(error.errno or 0)}"
    if error.errno in NO_ROOM:
        return OutOfCapacity(f"{what}; delete volumes or give the pool more room")
    if error.errno in _NOT_WRITABLE:
        return BackendUnavailable(
            f"{what}; make the folder writable for the volume host (read-only mount, or wrong owner)",
            reason="PoolNotWritable",
        )
    return BackendUnavailable(what)
