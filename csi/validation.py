"""What holds for every request: the size limits of CSI's general rules and the characters of names.

Strings at most 128 bytes, node ids 256, paths as long as the kernel takes them, a map 4 KiB in all, mount flags
4 KiB in all; a name holds no control characters.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from cinderblock.core.errors import InvalidRequest

_STRING_MAX = 128
_NODE_ID_MAX = 256
_PATH_MAX = 4096
_MAP_MAX = 4096
_FLAGS_MAX = 4096
_BANNED = re.compile("[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f]")


def check_limits(request: Message) -> None:
    """Errors: InvalidRequest that names the field."""
    _check(request, "")
    name = getattr(request, "name", "")
    if isinstance(name, str) and (found := _BANNED.search(name)):
        raise InvalidRequest(f"name: the character U+{ord(found[0]):04X} is not allowed in a name")


def _check(message: Message, prefix: str) -> None:
    for field, value in message.ListFields():
        path = f"{prefix}{field.name}"
        if isinstance(value, Mapping):
            size = sum(_size(k) + _size(v) for k, v in value.items())
            _limit(path, size, _MAP_MAX)
        elif isinstance(value, Message):
            _check(value, f"{path}.")
        elif field.is_repeated:
            _check_repeated(path, field, value)
        elif isinstance(value, str):
            _limit(path, _size(value), _string_limit(field.name))


def _check_repeated(path: str, field: FieldDescriptor, values: Any) -> None:
    if field.name == "mount_flags":
        _limit(path, sum(_size(v) for v in values), _FLAGS_MAX)
        return
    for index, value in enumerate(values):
        if isinstance(value, Message):
            _check(value, f"{path}[{index}].")
        elif isinstance(value, str):
            _limit(f"{path}[{index}]", _size(value), _string_limit(field.name))


def _string_limit(name: str) -> int:
    if name == "node_id":
        return _NODE_ID_MAX
    return _PATH_MAX if name.endswith("_path") else _STRING_MAX


def _size(value: Any) -> int:
    return len(value.encode()) if isinstance(value, str) else 8


def _limit(path: str, size: int, limit: int) -> None:
    if size > limit:
        raise InvalidRequest(f"{path} has {size} bytes: at most {limit} are allowed")
