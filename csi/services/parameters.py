"""The parameters of a StorageClass: ours, and what the provisioner adds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cinderblock.core.errors import InvalidRequest
from cinderblock.core.names import PARAMETER_VOLUME_TYPE
from cinderblock.csi.gateway.requests import Claim

_PREFIX = "csi.storage.k8s.io/"
_CLAIM_NAME = f"{_PREFIX}pvc/name"
_CLAIM_NAMESPACE = f"{_PREFIX}pvc/namespace"


@dataclass(frozen=True)
class Parameters:
    ours: dict[str, str]
    volume_type: str | None
    claim: Claim | None


def parse_parameters(parameters: Mapping[str, str]) -> Parameters:
    """Errors: InvalidRequest for a key that nothing would heed, or an empty type."""
    ours = {key: value for key, value in parameters.items() if not key.startswith(_PREFIX)}
    unknown = sorted(ours.keys() - {PARAMETER_VOLUME_TYPE})
    if unknown:
        raise InvalidRequest(
            f"parameters: {unknown[0]!r} is not known; the one parameter is {PARAMETER_VOLUME_TYPE}"
        )
    volume_type = ours.get(PARAMETER_VOLUME_TYPE)
    if volume_type is not None and not volume_type:
        raise InvalidRequest(
            f"parameters: {PARAMETER_VOLUME_TYPE} is empty: name a VolumeType or leave it out"
        )
    namespace, name = parameters.get(_CLAIM_NAMESPACE, ""), parameters.get(_CLAIM_NAME, "")
    return Parameters(ours, volume_type, Claim(namespace, name) if namespace and name else None)
