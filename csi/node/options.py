"""Which mount options a class of volumes may ask for.

mount(8) takes anything, and some options reach far (another loop device, a helper, a journal on a foreign device).
What is not on the list is refused with a message; nothing is dropped in silence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from cinderblock.core.errors import InvalidRequest


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_COMMON = _words(
    "ro rw noatime atime relatime norelatime nodiratime diratime strictatime lazytime nolazytime"
    " noexec exec nosuid suid nodev dev sync async dirsync discard nodiscard"
)
_EXT4 = _words(
    "user_xattr nouser_xattr acl noacl barrier nobarrier delalloc nodelalloc auto_da_alloc noauto_da_alloc"
    " block_validity noblock_validity dioread_lock dioread_nolock init_itable noinit_itable journal_checksum"
    " prjquota usrquota grpquota"
)
_XFS = _words(
    "attr2 noattr2 inode32 inode64 largeio nolargeio noalign swalloc norecovery"
    " uquota usrquota gquota grpquota pquota prjquota"
)
_VALUED = {
    "ext4": {
        "errors": re.compile(r"continue|remount-ro"),
        "data": re.compile(r"ordered|writeback|journal"),
        "commit": re.compile(r"[0-9]{1,4}"),
        "barrier": re.compile(r"[01]"),
        "stripe": re.compile(r"[0-9]{1,6}"),
        "init_itable": re.compile(r"[0-9]{1,4}"),
    },
    "xfs": {
        "allocsize": re.compile(r"[0-9]{1,10}[kKmMgG]?"),
        "logbsize": re.compile(r"[0-9]{1,6}[kK]?"),
        "logbufs": re.compile(r"[2-8]"),
        "sunit": re.compile(r"[0-9]{1,10}"),
        "swidth": re.compile(r"[0-9]{1,10}"),
    },
}
_WORDS = {"ext4": _COMMON | _EXT4, "xfs": _COMMON | _XFS}
FILESYSTEMS = tuple(_WORDS)


def check_fs_type(fs_type: str) -> str:
    if fs_type not in _WORDS:
        raise InvalidRequest(f"filesystem {fs_type[:32]!r} is not supported: {' or '.join(FILESYSTEMS)}")
    return fs_type


def check_options(fs_type: str, flags: Iterable[str]) -> tuple[str, ...]:
    """The options, one each, in their order. InvalidRequest for one that is not allowed.

    The message names the option and not its value: mount flags may hold secrets (CSI rule 7).
    """
    allowed, valued = _WORDS[check_fs_type(fs_type)], _VALUED[fs_type]
    out: list[str] = []
    for flag in flags:
        for option in flag.split(","):
            name, separator, value = option.partition("=")
            pattern = valued.get(name) if separator else None
            if (not separator and option in allowed) or (pattern is not None and pattern.fullmatch(value)):
                if option not in out:
                    out.append(option)
                continue
            shown = name if re.fullmatch(r"[a-z0-9_]{1,32}", name) else "(unreadable)"
            raise InvalidRequest(f"mount option {shown} is not allowed with {fs_type}")
    return tuple(out)
