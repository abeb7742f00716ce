"""The claim behind a CreateVolume: quota, columns and the orphan rule need to know it for certain.

The provisioner names volumes after the claim's UID and passes the claim's name. Both must speak of the same
claim: one that was deleted and made again under its old name is another one, and a volume for the old one would
be nobody's.
"""

from __future__ import annotations

import re

from cinderblock.core.api.builtin import PersistentVolumeClaim
from cinderblock.core.api.volume import ClaimReference
from cinderblock.core.errors import PreconditionFailed
from cinderblock.core.kube.port import Forbidden, Kube, ObjectNotFound
from cinderblock.csi.gateway.requests import Claim

_UID = re.compile(r"([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})$")


class ClaimGone(PreconditionFailed):
    """Nobody wants this volume any more: final, so that the provisioner forgets it."""

    default_reason = "ClaimGone"


async def claim_reference(kube: Kube, claim: Claim | None, csi_name: str) -> ClaimReference | None:
    """The claim with its UID, read fresh; from the volume's name where reading claims is not allowed.

    Errors: ClaimGone when the claim does not exist or is another one by now.
    """
    if claim is None:
        return None
    match = _UID.search(csi_name)
    named = match[1] if match else None
    try:
        found = await kube.get(PersistentVolumeClaim, claim.name, claim.namespace)
    except ObjectNotFound:
        raise ClaimGone(f"the claim {claim.namespace}/{claim.name} does not exist any more") from None
    except Forbidden:
        uid = named
    else:
        uid = found.uid
        if named is not None and named != uid:
            raise ClaimGone(
                f"{csi_name} is not for the claim {claim.namespace}/{claim.name}, which has UID {uid} by now"
            )
    return ClaimReference(namespace=claim.namespace, name=claim.name, uid=uid) if uid else None
