"""What the API server answers to good and bad manifests: schemas, rules, defaults, selectors."""

from typing import Any

import pytest
from raw_api import Answer, RawApi
from tests.conftest import ApiServer

from cinderblock.core.api import KINDS
from cinderblock.core.names import API_VERSION, GROUP

pytestmark = pytest.mark.apiserver

VOLUMES = f"/apis/{API_VERSION}/namespaces/default/volumes"
ATTACHMENTS = f"/apis/{API_VERSION}/namespaces/default/attachments"
SNAPSHOTS = f"/apis/{API_VERSION}/namespaces/default/snapshots"
GIB = 1024**3


def cluster(plural: str) -> str:
    return f"/apis/{API_VERSION}/{plural}"


def body(kind: str, name: str, **spec: Any) -> dict[str, Any]:
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}


def refused(answer: Answer, *words: str) -> None:
    assert answer.code == 422, (answer.code, answer.message)
    for word in words:
        assert word in answer.message


def accepted(answer: Answer) -> dict[str, Any]:
    assert answer.ok, (answer.code, answer.message)
    return answer.body


def placed(size_bytes: int = GIB, host: str = "h1") -> dict[str, Any]:
    allocation = {
        "backend": "b",
        "pool": "p",
        "host": host,
        "sizeBytes": size_bytes,
        "grant": 1,
        "volumeType": "gold",
    }
    return {
        "status": {
            "allocation": allocation,
            "phase": "Available",
            "capacityBytes": size_bytes,
            "handle": host,
        }
    }


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.KIND)
def test_every_crd_is_accepted_without_a_word(api: RawApi, kind: Any) -> None:
    crd = accepted(api.get(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{kind.PLURAL}.{GROUP}"))
    conditions = {c["type"]: c["status"] for c in crd["status"]["conditions"]}
    assert conditions.pop("Established") == "True"
    assert conditions.pop("NamesAccepted") == "True"
    assert conditions == {}, "such as NonStructuralSchema"
    assert crd["status"]["acceptedNames"]["shortNames"] == list(kind.SHORT_NAMES)
    assert crd["status"]["acceptedNames"]["categories"] == ["cinderblock"]


# sizes ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "size",
    ["0", "0Gi", "0.0", "-1", "-1Gi", "abc", "", "10 Gi", "10gi", "1e3", "10Gi\n", "8Ei", "99E", "9" * 33],
)
def test_a_size_that_is_none_is_refused(api: RawApi, name: str, size: str) -> None:
    refused(api.post(VOLUMES, body("Volume", name, size=size)), "spec.size")


@pytest.mark.parametrize("size", ["1", "10Gi", "0.5Gi", "1500M", "7Ei", "1.5Ti", "010Gi"])
def test_a_size_is_accepted(api: RawApi, name: str, size: str) -> None:
    accepted(api.post(VOLUMES, body("Volume", name, size=size)))


def test_the_size_is_required_and_a_string(api: RawApi, name: str) -> None:
    refused(api.post(VOLUMES, body("Volume", name)), "spec.size", "Required")
    refused(api.post(VOLUMES, body("Volume", name, size=10)), "spec.size", "string")
    no_spec = {"apiVersion": API_VERSION, "kind": "Volume", "metadata": {"name": name}}
    refused(api.post(VOLUMES, no_spec), "spec", "Required")


def test_a_volume_never_shrinks_below_what_exists(api: RawApi, name: str) -> None:
    accepted(api.post(VOLUMES, body("Volume", name, size="10Gi")))
    path = f"{VOLUMES}/{name}"
    accepted(api.patch(path, {"spec": {"size": "5Gi"}}))  # nothing exists yet
    accepted(api.patch(f"{path}/status", placed(5 * GIB)))
    refused(api.patch(path, {"spec": {"size": "4Gi"}}), "never shrinks", "status.capacityBytes")
    refused(api.patch(path, {"spec": {"size": "5368709119"}}), "never shrinks")
    accepted(api.patch(path, {"spec": {"size": "20Gi"}}))
    accepted(api.patch(path, {"spec": {"size": "6Gi"}}))  # the larger one was not made yet
    accepted(api.patch(path, {"spec": {"size": "5120Mi"}}))
    refused(api.patch(path, {"spec": {"size": "0"}}), "spec.size")


def test_a_backend_may_round_up_and_the_volume_still_grows_in_small_steps(api: RawApi, name: str) -> None:
    accepted(api.post(VOLUMES, body("Volume", name, size="1Gi")))
    accepted(api.patch(f"{VOLUMES}/{name}/status", placed(2 * GIB)))
    accepted(api.patch(f"{VOLUMES}/{name}", {"spec": {"size": "1025Mi"}}))


# immutable fields -------------------------------------------------------------------------------------
CSI = {"name": "pvc-1", "requiredBytes": 1, "parameters": {"volumeType": "gold"}}
FIELDS: list[tuple[str, Any, Any]] = [
    ("volumeType", "gold", "silver"),
    ("volumeMode", "Block", "Filesystem"),
    ("accessModes", ["ReadWriteOnce"], ["ReadWriteMany"]),
    ("source", {"snapshot": "s"}, {"snapshot": "other"}),
    ("source", {"snapshot": "s"}, {"snapshot": None, "volume": "v"}),
    ("fsType", "ext4", "xfs"),
    ("availabilityZone", "a", "b"),
    ("topology", {"requisite": ["n1"]}, {"requisite": ["n1", "n2"]}),
    ("csi", CSI, {"requiredBytes": 2}),
    ("csi", CSI, {"parameters": {"volumeType": "silver"}}),
]


@pytest.mark.parametrize(("field", "first", "second"), FIELDS)
def test_what_decides_how_a_volume_is_made_cannot_be_changed(
    api: RawApi, name: str, field: str, first: Any, second: Any
) -> None:
    accepted(api.post(VOLUMES, body("Volume", name, size="1Gi", **{field: first})))
    refused(
        api.patch(f"{VOLUMES}/{name}", {"spec": {field: second}}),
        f"spec.{field}",
        f"{field} cannot be changed",
    )
    accepted(api.patch(f"{VOLUMES}/{name}", {"spec": {field: first, "size": "2Gi"}}))


@pytest.mark.parametrize(
    ("field", "value"),
    [(field, first) for field, first, _ in FIELDS if field not in ("volumeMode", "accessModes")],
)
def test_what_was_absent_cannot_be_set_and_what_was_set_cannot_be_removed(
    api: RawApi, name: str, field: str, value: Any
) -> None:
    accepted(api.post(VOLUMES, body("Volume", name, size="1Gi")))
    refused(api.patch(f"{VOLUMES}/{name}", {"spec": {field: value}}), f"{field} cannot be changed")
    accepted(api.post(VOLUMES, body("Volume", f"{name}-2", size="1Gi", **{field: value})))
    refused(api.patch(f"{VOLUMES}/{name}-2", {"spec": {field: None}}), f"{field} cannot be changed")


def test_a_defaulted_field_that_is_removed_is_its_default(api: RawApi, name: str) -> None:
    accepted(api.post(VOLUMES, body("Volume", name, size="1Gi", volumeMode="Filesystem")))
    after = accepted(api.patch(f"{VOLUMES}/{name}", {"spec": {"volumeMode": None}}))
    assert after["spec"]["volumeMode"] == "Filesystem"
    accepted(api.post(VOLUMES, body("Volume", f"{name}-2", size="1Gi", volumeMode="Block")))
    refused(api.patch(f"{VOLUMES}/{name}-2", {"spec": {"volumeMode": None}}), "volumeMode cannot be changed")


def test_the_order_of_access_modes_says_nothing_and_none_comes_twice(api: RawApi, name: str) -> None:
    modes = ["ReadWriteOnce", "ReadOnlyMany"]
    accepted(api.post(VOLUMES, body("Volume", name, size="1Gi", accessModes=modes)))
    accepted(api.patch(f"{VOLUMES}/{name}", {"spec": {"accessModes": modes[::-1]}}))
    refused(
        api.post(VOLUMES, body("Volume", f"{name}-2", size="1Gi", accessModes=modes[:1] * 2)), "Duplicate"
    )
    refused(api.post(VOLUMES, body("Volume", f"{name}-3", size="1Gi", accessModes=[])), "spec.accessModes")
    refused(
        api.post(VOLUMES, body("Volume", f"{name}-4", size="1Gi", accessModes=["Sometimes"])), "Unsupported"
    )


# sources ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "names", [("snapshot", "volume"), ("volume", "image"), ("snapshot", "volume", "image")]
)
def test_two_sources_are_refused(api: RawApi, name: str, names: tuple[str, ...]) -> None:
    answer = api.post(VOLUMES, body("Volume", name, size="1Gi", source=dict.fromkeys(names, "x")))
    refused(answer, "spec.source", "at most one of snapshot, volume and image")


@pytest.mark.parametrize("source", [{}, {"snapshot": "s"}, {"volume": "v"}, {"image": "i"}])
def test_one_source_or_none_is_accepted(api: RawApi, name: str, source: dict[str, str]) -> None:
    accepted(api.post(VOLUMES, body("Volume", name, size="1Gi", source=source)))


def test_an_empty_name_is_no_source(api: RawApi, name: str) -> None:
    refused(
        api.post(VOLUMES, body("Volume", name, size="1Gi", source={"snapshot": ""})), "spec.source.snapshot"
    )


# status -----------------------------------------------------------------------------------------------
def test_spec_and_status_are_written_apart(api: RawApi, name: str) -> None:
    made = accepted(api.post(VOLUMES, body("Volume", name, size="1Gi") | placed()))
    assert "status" not in made
    accepted(api.patch(f"{VOLUMES}/{name}", placed()))
    assert "status" not in accepted(api.get(f"{VOLUMES}/{name}"))
    after = accepted(api.patch(f"{VOLUMES}/{name}/status", placed() | {"spec": {"size": "9Gi"}}))
    assert after["spec"]["size"] == "1Gi"
    assert after["status"]["capacityBytes"] == GIB


def test_a_status_is_stored_as_written_without_defaults(api: RawApi, name: str) -> None:
    accepted(api.post(VOLUMES, body("Volume", name, size="1Gi")))
    entry = {"attachmentUID": "u1", "attachment": "default/a", "node": "n1", "generation": 1, "use": "Mount"}
    status = {"status": {"attachments": [entry]}}
    assert accepted(api.patch(f"{VOLUMES}/{name}/status", status))["status"] == status["status"]


def test_attachments_and_conditions_are_told_apart_by_their_keys(api: RawApi, name: str) -> None:
    accepted(api.post(VOLUMES, body("Volume", name, size="1Gi")))
    entry = {"attachmentUID": "u1", "attachment": "default/a", "node": "n1", "generation": 1, "use": "Mount"}
    twice = api.patch(
        f"{VOLUMES}/{name}/status", {"status": {"attachments": [entry, entry | {"node": "n2"}]}}
    )
    refused(twice, "Duplicate", "status.attachments")
    ready = {"type": "Ready", "status": "True", "reason": "R", "lastTransitionTime": "2030-01-01T00:00:00Z"}
    twice = api.patch(
        f"{VOLUMES}/{name}/status", {"status": {"conditions": [ready, ready | {"status": "False"}]}}
    )
    refused(twice, "Duplicate", "status.conditions")
    refused(
        api.patch(f"{VOLUMES}/{name}/status", {"status": {"conditions": [ready | {"status": "true"}]}}),
        "True",
    )


def test_unknown_fields_are_dropped_but_for_a_drivers_own_settings(api: RawApi, name: str) -> None:
    made = accepted(api.post(VOLUMES, body("Volume", name, size="1Gi", surprise=1, topology={"zone": "z"})))
    assert "surprise" not in made["spec"]
    assert made["spec"]["topology"] == {}
    config = {"folder": "/srv", "nested": {"deep": [1, {"deeper": True}]}}
    backend = accepted(api.post(cluster("backends"), body("Backend", name, driver="file", config=config)))
    assert backend["spec"]["config"] == config


# defaults ---------------------------------------------------------------------------------------------
def test_defaults_are_filled_in(api: RawApi, name: str) -> None:
    volume = accepted(api.post(VOLUMES, body("Volume", name, size="1Gi")))
    assert volume["spec"] == {"size": "1Gi", "volumeMode": "Filesystem", "accessModes": ["ReadWriteOnce"]}
    backend = accepted(api.post(cluster("backends"), body("Backend", name, driver="file")))
    assert backend["spec"] == {
        "driver": "file",
        "overSubscriptionRatio": "20",
        "reservedPercent": 0,
        "physicalFloorPercent": 5,
    }
    no_spec = {"apiVersion": API_VERSION, "kind": "VolumeType", "metadata": {"name": name}}
    assert accepted(api.post(cluster("volumetypes"), no_spec))["spec"] == {
        "isDefault": False,
        "provisioning": "Thin",
    }
    attachment = accepted(api.post(ATTACHMENTS, body("Attachment", name, volume="v", node="n")))
    assert attachment["spec"] == {"volume": "v", "node": "n", "readOnly": False, "use": "Bare"}


# the other kinds --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "change",
    [
        {"volume": "w"},
        {"node": "m"},
        {"readOnly": True},
        {"use": "Block"},
        {"fsType": "xfs"},
        {"fsType": None},
    ],
)
def test_the_spec_of_an_attachment_cannot_be_changed(api: RawApi, name: str, change: dict[str, Any]) -> None:
    spec = {"volume": "v", "node": "n", "use": "Mount", "fsType": "ext4"}
    accepted(api.post(ATTACHMENTS, body("Attachment", name, **spec)))
    refused(api.patch(f"{ATTACHMENTS}/{name}", {"spec": change}), "cannot be changed")
    status = {"status": {"admitted": True, "generation": 3}}
    assert accepted(api.patch(f"{ATTACHMENTS}/{name}/status", status))["status"] == status["status"]
    labels = {"metadata": {"labels": {"cinderblock.io/host": "h"}, "finalizers": ["cinderblock.io/protect"]}}
    accepted(api.patch(f"{ATTACHMENTS}/{name}", labels))
    accepted(api.patch(f"{ATTACHMENTS}/{name}", {"metadata": {"finalizers": None}}))


def test_a_raw_device_has_no_filesystem_type(api: RawApi, name: str) -> None:
    answer = api.post(VOLUMES, body("Volume", name, size="1Gi", volumeMode="Block", fsType="xfs"))
    refused(answer, "spec.fsType", "only for volumeMode Filesystem")
    accepted(api.post(VOLUMES, body("Volume", name, size="1Gi", fsType="xfs")))


@pytest.mark.parametrize("use", ["Block", "Bare", None])
def test_a_filesystem_type_is_only_for_mounts(api: RawApi, name: str, use: str | None) -> None:
    spec = {"volume": "v", "node": "n", "fsType": "xfs"} | ({"use": use} if use else {})
    refused(api.post(ATTACHMENTS, body("Attachment", name, **spec)), "spec.fsType", "only for use Mount")
    accepted(api.post(ATTACHMENTS, body("Attachment", name, **(spec | {"use": "Mount"}))))
    refused(
        api.post(ATTACHMENTS, body("Attachment", f"{name}-2", **(spec | {"use": "Mount", "fsType": "ntfs"})))
    )


def test_the_driver_of_a_backend_cannot_be_changed_but_its_settings_can(api: RawApi, name: str) -> None:
    path = f"{cluster('backends')}/{name}"
    accepted(api.post(cluster("backends"), body("Backend", name, driver="file", config={"folder": "/a"})))
    refused(api.patch(path, {"spec": {"driver": "fake"}}), "driver of a Backend cannot be changed")
    refused(api.patch(path, {"spec": {"driver": None}}), "spec.driver")
    accepted(api.patch(path, {"spec": {"config": {"folder": "/b"}, "reservedPercent": 10}}))
    refused(api.patch(path, {"spec": {"reservedPercent": 101}}), "reservedPercent")
    refused(api.patch(path, {"spec": {"overSubscriptionRatio": "many"}}), "overSubscriptionRatio")


def test_the_identity_of_what_a_backend_holds_is_set_once(api: RawApi, name: str) -> None:
    accepted(api.post(VOLUMES, body("Volume", name, size="1Gi")))
    path = f"{VOLUMES}/{name}/status"
    accepted(api.patch(path, {"status": {"phase": "Pending"}}))
    accepted(api.patch(path, {"status": {"handle": "h", "lastGrant": 2, "attachGeneration": 2}}))
    refused(api.patch(path, {"status": {"handle": "i"}}), "handle cannot be changed once it is set")
    refused(api.patch(path, {"status": {"handle": None}}), "handle")
    refused(api.patch(path, {"status": {"lastGrant": 1}}), "lastGrant never falls")
    refused(api.patch(path, {"status": {"attachGeneration": None}}), "attachGeneration never falls")
    accepted(api.patch(path, {"status": {"handle": "h", "lastGrant": 3, "attachGeneration": 2}}))
    accepted(api.post(cluster("pools"), body("Pool", name, backend="b", host="h")))
    path = f"{cluster('pools')}/{name}/status"
    accepted(api.patch(path, {"status": {"poolID": "p"}}))
    refused(api.patch(path, {"status": {"poolID": "q"}}), "poolID cannot be changed")
    accepted(api.patch(path, {"status": {"poolID": "p", "freeBytes": 1}}))


def test_the_spec_of_a_pool_and_of_a_snapshot_cannot_be_changed(api: RawApi, name: str) -> None:
    accepted(api.post(cluster("pools"), body("Pool", name, backend="b", host="h")))
    refused(api.patch(f"{cluster('pools')}/{name}", {"spec": {"host": "i"}}), "cannot be changed")
    refused(api.patch(f"{cluster('pools')}/{name}", {"spec": {"node": "n"}}), "cannot be changed")
    accepted(api.post(SNAPSHOTS, body("Snapshot", name, volume="v")))
    refused(api.patch(f"{SNAPSHOTS}/{name}", {"spec": {"volume": "w"}}), "cannot be changed")


def test_the_sizes_of_a_type_are_in_order(api: RawApi, name: str) -> None:
    path = cluster("volumetypes")
    refused(
        api.post(path, body("VolumeType", name, minSize="2Gi", maxSize="1Gi")),
        "maxSize cannot be below minSize",
    )
    accepted(api.post(path, body("VolumeType", name, minSize="1024Mi", maxSize="1Gi")))
    refused(api.patch(f"{path}/{name}", {"spec": {"maxSize": "1"}}), "spec.maxSize")
    accepted(api.patch(f"{path}/{name}", {"spec": {"minSize": None, "maxSize": "1"}}))


def test_a_storage_node_says_everything_in_its_status(api: RawApi, name: str) -> None:
    path = cluster("storagenodes")
    accepted(api.post(path, {"apiVersion": API_VERSION, "kind": "StorageNode", "metadata": {"name": name}}))
    status = {"status": {"bootID": "b", "nodeUID": "u", "protocols": ["Local"], "addresses": ["10.0.0.1"]}}
    assert accepted(api.patch(f"{path}/{name}/status", status))["status"] == status["status"]


# what people see --------------------------------------------------------------------------------------
def test_selectable_fields_select(api: RawApi, name: str) -> None:
    host = f"host-{name}"
    accepted(api.post(VOLUMES, body("Volume", name, size="1Gi")))
    accepted(api.post(VOLUMES, body("Volume", f"{name}-2", size="1Gi")))
    accepted(api.patch(f"{VOLUMES}/{name}/status", placed(host=host)))
    for selector in (f"status.allocation.host={host}", f"status.handle={host}"):
        found = accepted(api.get(f"{VOLUMES}?fieldSelector={selector}"))
        assert [item["metadata"]["name"] for item in found["items"]] == [name]
    accepted(api.post(ATTACHMENTS, body("Attachment", name, volume="v", node=host)))
    found = accepted(api.get(f"{ATTACHMENTS}?fieldSelector=spec.node={host}"))
    assert [item["metadata"]["name"] for item in found["items"]] == [name]
    accepted(api.post(cluster("pools"), body("Pool", name, backend=name, host=host)))
    for selector in (f"spec.host={host}", f"spec.backend={name}"):
        found = accepted(api.get(f"{cluster('pools')}?fieldSelector={selector}"))
        assert [item["metadata"]["name"] for item in found["items"]] == [name]
    assert api.get(f"{SNAPSHOTS}?fieldSelector=status.host=h,status.sourceHandle=s").ok


def test_kubectl_get_shows_what_people_ask_for(served: ApiServer, api: RawApi, name: str) -> None:
    accepted(api.post(VOLUMES, body("Volume", name, size="1Gi", volumeType="gold")))
    entry = {
        "attachmentUID": "u",
        "attachment": "default/a",
        "node": "node-7",
        "generation": 1,
        "use": "Mount",
    }
    status = placed()
    status["status"]["attachments"] = [entry]
    accepted(api.patch(f"{VOLUMES}/{name}/status", status))
    for word in ("volumes.cinderblock.io", "cbv", "cbvol", "volume.cinderblock.io"):
        head, row = served.kubectl("get", word, name).splitlines()
        assert head.split() == ["NAME", "PHASE", "SIZE", "TYPE", "POOL", "NODE", "AGE"]
        assert row.split()[:6] == [name, "Available", "1Gi", "gold", "p", "node-7"]
    wide = served.kubectl("get", "cbv", name, "-o", "wide").splitlines()[0]
    assert wide.split()[-2:] == ["CLAIM", "HANDLE"]
    everything = served.kubectl("get", "cinderblock", "-o", "name")
    assert f"volume.cinderblock.io/{name}" in everything.splitlines()


def test_kubectl_explain_knows_the_fields(served: ApiServer) -> None:
    assert "Size wanted, such as 10Gi" in served.kubectl(
        "explain", "volume.spec.size", f"--api-version={API_VERSION}"
    )
