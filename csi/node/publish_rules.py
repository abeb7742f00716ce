"""The table of NodePublish (CSI specification, NodePublishVolume): 4 kinds of access mode times 4 cells. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from cinderblock.core.errors import IncompatibleExists, PreconditionFailed
from cinderblock.csi.node.records import Record

# Modes of which one node may have several targets.
_SEVERAL_TARGETS = frozenset(
    {
        "MULTI_NODE_READER_ONLY",
        "MULTI_NODE_SINGLE_WRITER",
        "MULTI_NODE_MULTI_WRITER",
        "SINGLE_NODE_MULTI_WRITER",
    }
)


class PublishStep(StrEnum):
    BIND = "Bind"
    DONE = "Done"  # the same call was served before


def decide_publish(asked: Record, published: Sequence[Record]) -> PublishStep:
    """`published`: what stands at targets of this volume now, by the kernel's word.

    Errors: IncompatibleExists (same target, other arguments), PreconditionFailed (a second target, and the access
    mode of either call allows one).
    """
    for record in published:
        if record.path == asked.path:
            if record != asked:
                raise IncompatibleExists(f"the volume is published at {asked.path} with other arguments")
            return PublishStep.DONE
    for record in published:
        if not {asked.access_mode, record.access_mode} <= _SEVERAL_TARGETS:
            raise PreconditionFailed(
                f"the volume is published at {record.path}, and {asked.access_mode} allows one target"
            )
    return PublishStep.BIND
