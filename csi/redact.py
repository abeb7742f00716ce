"""A request as one line for the log, without what must never be there (CSI rule 7).

Secrets are marked in csi.proto by a field option, so that new ones are covered the day they appear. Mount flags
can hold credentials, and so can the service account tokens that a kubelet puts into volume_context.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from cinderblock.csi.pb import csi_pb2

HIDDEN = "***"
_HIDDEN_FIELDS = frozenset({"mount_flags"})
_HIDDEN_KEYS = frozenset({"csi.storage.k8s.io/serviceAccount.tokens"})
_TEXT_MAX = 2048


def redacted(message: Message) -> str:
    """JSON of the set fields, secrets hidden, cut at 2 KiB."""
    text = json.dumps(_fields(message), ensure_ascii=True, separators=(",", ":"))
    return text if len(text) <= _TEXT_MAX else text[:_TEXT_MAX] + "..."


def _fields(message: Message) -> dict[str, Any]:
    return {field.name: _value(field, value) for field, value in message.ListFields()}


def _value(field: FieldDescriptor, value: Any) -> Any:
    if field.name in _HIDDEN_FIELDS or field.GetOptions().Extensions[csi_pb2.csi_secret]:
        return HIDDEN
    if isinstance(value, Mapping):
        return {str(k): HIDDEN if k in _HIDDEN_KEYS else str(v) for k, v in value.items()}
    if isinstance(value, Message):
        return _fields(value)
    if field.is_repeated:
        return [_fields(v) if isinstance(v, Message) else _scalar(v) for v in value]
    return _scalar(value)


def _scalar(value: Any) -> Any:
    return f"{len(value)} bytes" if isinstance(value, bytes) else value
