"""Helm's record after a refused uninstall, as helm wrote it."""

import base64
import gzip
import json
from typing import Any

import pytest
from fake_kube import FakeKube

from cinderblock.cli.helm_record import Secret, restore, restored_or_how
from cinderblock.core.api.meta import ObjectMeta

NAME = "sh.helm.release.v1.my-release.v3"


def packed(release: dict[str, Any]) -> str:
    return base64.b64encode(base64.b64encode(gzip.compress(json.dumps(release).encode()))).decode()


def unpacked(secret: Secret) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        gzip.decompress(base64.b64decode(base64.b64decode(secret.data["release"])))
    )
    return found


async def record(kube: FakeKube, status: str) -> None:
    release = {
        "name": "my-release",
        "version": 3,
        "config": {"x": "ä"},
        "info": {"status": status, "deleted": "now"},
    }
    labels = {"owner": "helm", "name": "my-release", "status": status, "version": "3"}
    await kube.create(
        Secret(
            metadata=ObjectMeta(name=NAME, namespace="ns", labels=labels), data={"release": packed(release)}
        )
    )


async def test_an_uninstall_that_was_refused_leaves_a_deployed_release() -> None:
    kube = FakeKube()
    await record(kube, "uninstalling")
    assert await restored_or_how(kube, "ns", NAME) == "the release stays deployed"
    after = await kube.get(Secret, NAME, "ns")
    assert after.metadata.labels == {
        "owner": "helm",
        "name": "my-release",
        "status": "deployed",
        "version": "3",
    }
    release = unpacked(after)
    assert release["info"]["status"] == "deployed"
    assert "deleted" not in release["info"]
    assert (release["config"], release["version"]) == ({"x": "ä"}, 3)


@pytest.mark.parametrize(
    ("status", "deployed"), [("deployed", True), ("failed", False), ("uninstalled", False)]
)
async def test_any_other_state_is_left_alone(status: str, deployed: bool) -> None:
    kube = FakeKube()
    await record(kube, status)
    assert await restore(kube, "ns", NAME) is deployed
    assert unpacked(await kube.get(Secret, NAME, "ns"))["info"]["status"] == status
    assert not [write for write in kube.writes if write[0] == "update"]


async def test_without_a_record_the_person_is_told_what_to_do() -> None:
    assert "helm rollback my-release 3 -n ns" in await restored_or_how(FakeKube(), "ns", NAME)


@pytest.mark.parametrize("data", ["", "?", "aGVsbG8=", packed({"info": 5})])
async def test_a_record_of_another_form_is_not_touched(data: str) -> None:
    kube = FakeKube()
    await kube.create(Secret(metadata=ObjectMeta(name=NAME, namespace="ns"), data={"release": data}))
    assert "helm rollback my-release 3 -n ns" in await restored_or_how(kube, "ns", NAME)
    assert (await kube.get(Secret, NAME, "ns")).data == {"release": data}
