"""Every name that two processes must agree on, made in one place."""

from __future__ import annotations

import hashlib
import re

GROUP = "cinderblock.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

FINALIZER_PROTECT = f"{GROUP}/protect"
FINALIZER_PV = f"{GROUP}/pv"
LABEL_HOST = f"{GROUP}/host"
LABEL_CSI_NAME = f"{GROUP}/csi-name"
ANNOTATION_CSI_ANSWERED = f"{GROUP}/csi-answered"

CSI_DRIVER = "csi.cinderblock.io"
TOPOLOGY_NODE = "topology.cinderblock.io/node"
PARAMETER_VOLUME_TYPE = "volumeType"

OPERATOR_HOST = "operator"  # the host name of backends that no node owns
OPERATOR_LEASE = "cinderblock-operator"
DEVICE_LINKS = "/dev/cinderblock"

_DNS_1123 = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL_MAX = 63
_NAME_MAX = 253


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def host_name(node: str) -> str:
    """The volume host of a node: a label value, never the reserved `operator`."""
    return node if len(node) <= _LABEL_MAX and node != OPERATOR_HOST else f"n-{_digest(node)}"


def host_lease(host: str) -> str:
    return f"cinderblock-host-{host}"


def pool_name(backend: str, node: str | None, pool: str | None) -> str:
    """The Pool object of a driver's pool: readable where Kubernetes takes that as a name, else a hash."""
    name = "-".join(part for part in (backend, node, pool) if part)
    return name if is_object_name(name) else f"p-{_digest(name)}"


def object_name(handle: str, grant: int) -> str:
    """What a backend calls a volume: never a user's name."""
    return f"{handle}-{grant}"


def is_object_name(text: str) -> bool:
    """Whether Kubernetes takes this as the name of one of our objects."""
    return len(text) <= _NAME_MAX and _DNS_1123.fullmatch(text) is not None


def volume_cr_name(csi_name: str) -> str:
    """The CR of a CSI volume name: itself where Kubernetes takes it, else a hash (CSI names hold any Unicode)."""
    return csi_name if is_object_name(csi_name) else f"v-{_digest(csi_name)}"


def csi_name_label(csi_name: str) -> str:
    """A label value that finds the Volume of a CSI name."""
    return _digest(csi_name)


def attachment_name(handle: str, node: str) -> str:
    return f"a-{_digest(handle + '/' + node)}"
