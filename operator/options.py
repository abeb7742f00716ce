"""What an operator process is told: flags and CINDERBLOCK_* variables, read by the command line."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class Role(StrEnum):
    LEADER = "leader"
    HOST = "host"


@dataclass(frozen=True)
class OperatorOptions:
    """`namespace` is the release's; `identity` must be new at every start of a process."""

    role: Role
    namespace: str
    identity: str
    pools_root: Path
    node: str | None = None  # role host: the node that it serves
    kubeconfig: Path | None = None  # None = the service account of the pod
    metrics_port: int = 0  # 0 = no endpoint
    metrics_address: str = ""  # "" = all of them: probes come from the node
