"""Objects that an older version of a CRD let in: they stay readable, writable and repairable under today's."""

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from raw_api import RawApi, until
from tests.conftest import ApiServer

from cinderblock.core.api import Volume
from cinderblock.core.crd.manifest import manifest

pytestmark = pytest.mark.apiserver

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


def under_another_group(group: str, change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """The CRD of Volume under a group of the test's own, changed to what an older one looked like."""
    crd = copy.deepcopy(manifest(Volume))
    crd["metadata"]["name"] = f"volumes.{group}"
    crd["spec"]["group"] = group
    crd["spec"]["names"] |= {"shortNames": [], "categories": []}
    change(crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
    return crd


def without_rules_and_later_fields(schema: dict[str, Any]) -> None:
    """No rules at all, and none of the optional fields: as if they all came later."""
    schema.pop("x-kubernetes-validations")
    spec = schema["properties"]["spec"]
    spec.pop("x-kubernetes-validations")
    spec["properties"] = {"size": {"type": "string"}}


def as_today(schema: dict[str, Any]) -> None:
    pass


class Volumes:
    """Volumes of one group, first under the old CRD and after `upgrade` under today's."""

    def __init__(self, server: ApiServer, api: RawApi, group: str) -> None:
        self._server, self._api, self.group = server, api, group
        self.path = f"/apis/{group}/v1alpha1/namespaces/default/volumes"
        self._apply(without_rules_and_later_fields)
        until("the old CRD", lambda: api.get(self.path).ok)

    def _apply(self, change: Callable[[dict[str, Any]], None]) -> None:
        self._server.kubectl("apply", "-f", "-", stdin=json.dumps(under_another_group(self.group, change)))

    def store(self, name: str, size: str) -> None:
        answer = self._api.post(self.path, body(self.group, name, size))
        assert answer.ok, answer.message

    def takes(self, size: str) -> bool:
        """Whether a new Volume of that size would be let in."""
        return self._api.post(f"{self.path}?dryRun=All", body(self.group, "probe", size)).ok

    def upgrade(self) -> None:
        self._apply(as_today)
        until("the new rules", lambda: not self.takes("0"))

    def remove(self) -> None:
        self._api.call("DELETE", f"{CRDS}/volumes.{self.group}")


@pytest.fixture
def volumes(served: ApiServer, api: RawApi, name: str) -> Iterator[Volumes]:
    old = Volumes(served, api, f"{name}.example.com")
    yield old
    old.remove()


def body(group: str, name: str, size: str) -> dict[str, Any]:
    return {
        "apiVersion": f"{group}/v1alpha1",
        "kind": "Volume",
        "metadata": {"name": name},
        "spec": {"size": size},
    }


def test_an_object_from_before_a_field_existed_is_not_stuck(volumes: Volumes, api: RawApi) -> None:
    volumes.store("old", "1Gi")
    volumes.upgrade()
    path = volumes.path
    stored = api.get(f"{path}/old").body
    assert stored["spec"]["volumeMode"] == "Filesystem", "a default reaches objects that are older than it"
    assert api.patch(f"{path}/old/status", {"status": {"capacityBytes": 1024**3, "phase": "Available"}}).ok
    assert api.patch(f"{path}/old", {"metadata": {"finalizers": ["cinderblock.io/protect"]}}).ok
    assert api.patch(f"{path}/old", {"spec": {"size": "2Gi"}}).ok
    assert api.patch(f"{path}/old", {"spec": {"volumeMode": "Filesystem"}}).ok, "the default, named"
    assert api.patch(f"{path}/old", {"spec": {"volumeMode": "Block"}}).code == 422
    assert api.patch(f"{path}/old", {"spec": {"volumeType": "gold"}}).code == 422
    assert api.patch(f"{path}/old", {"metadata": {"finalizers": None}}).ok


@pytest.mark.parametrize("size", ["0", "abc", "-1", "99E"])
def test_a_status_write_passes_beside_a_spec_that_todays_rules_refuse(
    volumes: Volumes, api: RawApi, size: str
) -> None:
    volumes.store("bad", size)
    volumes.upgrade()
    path = volumes.path
    assert not volumes.takes(size)
    status = {"status": {"phase": "Error", "capacityBytes": 1, "scheduling": {"epoch": 3}}}
    answer = api.patch(f"{path}/bad/status", status)
    assert answer.ok, answer.message
    assert answer.body["status"] == status["status"]
    assert api.patch(f"{path}/bad/status", {"status": {"phase": "Deleting"}}).ok
    held = {"metadata": {"finalizers": ["cinderblock.io/protect"]}}
    assert api.patch(f"{path}/bad", held).ok, "nor does a finalizer depend on it"
    assert api.patch(f"{path}/bad", {"metadata": {"finalizers": None}}).ok
    repaired = api.patch(f"{path}/bad", {"spec": {"size": "1Gi"}})
    assert repaired.ok, repaired.message
