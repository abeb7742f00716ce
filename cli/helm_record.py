"""Puts helm's record of the release right after a refused uninstall.

Helm writes "uninstalling" into the record before it runs the pre-delete hook, and nothing after a hook that fails. Such
a release can be uninstalled again but never upgraded ("has no deployed releases"), although nothing was removed. The
hook knows better, and its Role names this one record and no other Secret.
"""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any, ClassVar

from pydantic import Field

from cinderblock.core.api.meta import Resource
from cinderblock.core.kube.port import Conflict, Kube, KubeError

_TRIES = 5
_UNINSTALLING, _DEPLOYED = "uninstalling", "deployed"


class Secret(Resource):
    KIND: ClassVar[str] = "Secret"
    PLURAL: ClassVar[str] = "secrets"
    API_VERSION: ClassVar[str] = "v1"

    data: dict[str, str] = Field(default_factory=dict)


class RecordUnreadable(Exception):
    """Another version of helm, or another storage: the person has to do it."""


async def restore(kube: Kube, namespace: str, record: str) -> bool:
    """Whether the record says "deployed" now. Errors: RecordUnreadable, KubeError."""
    for _ in range(_TRIES):
        secret = await kube.get(Secret, record, namespace)
        release = _decoded(secret.data.get("release", ""))
        info = release.get("info")
        if not isinstance(info, dict):
            raise RecordUnreadable("there is no info in it")
        if info.get("status") != _UNINSTALLING:
            return info.get("status") == _DEPLOYED
        info["status"], info["description"] = _DEPLOYED, "Uninstall was refused: nothing was removed"
        info.pop("deleted", None)
        labels = {**secret.metadata.labels, "status": _DEPLOYED}
        after = secret.with_(
            data={**secret.data, "release": _encoded(release)}, metadata=secret.metadata.with_(labels=labels)
        )
        try:
            await kube.update(secret, after)
        except Conflict:
            continue
        return True
    return False


async def restored_or_how(kube: Kube, namespace: str, record: str) -> str:
    """One line for the person who was refused."""
    try:
        if await restore(kube, namespace, record):
            return "the release stays deployed"
    except (KubeError, RecordUnreadable) as error:
        reason = f" ({error})"
    else:
        reason = ""
    release, _, revision = record.removeprefix("sh.helm.release.v1.").rpartition(".v")
    return (
        f"helm's record still says uninstalling{reason};"
        f" before the next upgrade run: helm rollback {release} {revision} -n {namespace}"
    )


def _decoded(data: str) -> dict[str, Any]:
    """Kubernetes' base64 around helm's base64 around gzip around JSON."""
    try:
        release = json.loads(gzip.decompress(base64.b64decode(base64.b64decode(data))))
    except (ValueError, OSError, EOFError) as error:
        raise RecordUnreadable(str(error)) from None
    if not isinstance(release, dict):
        raise RecordUnreadable("it is no object")
    return release


def _encoded(release: dict[str, Any]) -> str:
    packed = gzip.compress(json.dumps(release, separators=(",", ":")).encode())
    return base64.b64encode(base64.b64encode(packed)).decode()
