"""Conditions, the base model, and what goes to the API server."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cinderblock.core.api import Attachment, Volume
from cinderblock.core.api.meta import (
    Condition,
    ConditionStatus,
    ObjectMeta,
    drop_condition,
    find_condition,
    is_true,
    set_condition,
)
from cinderblock.core.api.volume import AccessMode, VolumeSpec
from cinderblock.core.kube.port import merge_patch

NOW = datetime(2030, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)


def ready(before: tuple[Condition, ...] = (), **changes: Any) -> tuple[Condition, ...]:
    said = {"status": True, "reason": "Available", "generation": 1, "now": NOW, **changes}
    status = said.pop("status")
    return set_condition(before, "Ready", status, **said)


def test_saying_the_same_again_changes_nothing() -> None:
    first = ready()
    assert ready(first, now=LATER) is not None
    assert ready(first, now=LATER) == first
    assert ready(first, now=LATER)[0] is first[0]


@pytest.mark.parametrize("change", [{"reason": "Other"}, {"message": "more"}, {"generation": 2}])
def test_the_transition_time_stays_while_the_status_stays(change: dict[str, Any]) -> None:
    first = ready()
    second = ready(first, now=LATER, **change)
    assert second != first
    assert second[0].last_transition_time == NOW


@pytest.mark.parametrize(
    ("status", "value"),
    [(False, ConditionStatus.FALSE), (None, ConditionStatus.UNKNOWN)],
)
def test_the_transition_time_moves_with_the_status(status: bool | None, value: ConditionStatus) -> None:
    second = ready(ready(), status=status, now=LATER)
    assert (second[0].status, second[0].last_transition_time) == (value, LATER)
    assert ready(second, now=LATER + timedelta(hours=1))[0].last_transition_time == LATER + timedelta(hours=1)


def test_other_conditions_and_the_order_stay() -> None:
    both = set_condition(ready(), "Lost", False, reason="Found", generation=1, now=NOW)
    after = ready(both, status=False, now=LATER)
    assert [c.type for c in after] == ["Ready", "Lost"]
    assert after[1] is both[1]
    assert not is_true(after, "Ready")
    assert is_true(both, "Ready")
    assert not is_true((), "Ready")
    assert find_condition(after, "None") is None
    assert [c.type for c in drop_condition(after, "Ready")] == ["Lost"]
    assert drop_condition(after, "None") == after


words = st.sampled_from(["a", "b", "c"])


@given(st.lists(st.tuples(words, st.sampled_from([True, False, None]), words)))
def test_a_type_stands_once_and_says_the_last_thing_said(told: list[tuple[str, bool | None, str]]) -> None:
    conditions: tuple[Condition, ...] = ()
    for type_, status, reason in told:
        conditions = set_condition(conditions, type_, status, reason=reason, generation=1, now=NOW)
    last = {type_: reason for type_, _, reason in told}
    assert {c.type: c.reason for c in conditions} == last
    assert len(conditions) == len(last)


# models -----------------------------------------------------------------------------------------------
def test_a_copy_changes_only_known_fields_and_never_the_original() -> None:
    spec = VolumeSpec(size="1Gi")
    assert spec.with_(size="2Gi").size == "2Gi"
    assert spec.size == "1Gi"
    with pytest.raises(AttributeError, match="colour"):
        spec.with_(colour="red")
    with pytest.raises(ValidationError):
        spec.size = "3Gi"  # type: ignore[misc]


def test_fields_of_a_newer_version_are_passed_over() -> None:
    read = Volume.model_validate(
        {
            "metadata": {"name": "v", "managedFields": []},
            "spec": {"size": "1Gi", "later": {"a": 1}},
            "later": 1,
        }
    )
    assert read.spec == VolumeSpec(size="1Gi")


def test_what_goes_out_has_no_nulls_and_no_empty_metadata() -> None:
    body = Volume(metadata=ObjectMeta(name="v"), spec=VolumeSpec(size="1Gi")).to_api()
    assert body["metadata"] == {"name": "v"}
    assert (body["apiVersion"], body["kind"]) == ("cinderblock.io/v1alpha1", "Volume")
    assert "volumeType" not in body["spec"]
    assert None not in body["status"].values()


def test_identifiers_keep_their_spelling() -> None:
    body = {"metadata": {}, "spec": {"volume": "v", "node": "n"}, "status": {"bootID": "b"}}
    assert Attachment.model_validate(body).to_api()["status"]["bootID"] == "b"


def test_finalizers_are_a_set_in_order() -> None:
    volume = Volume(spec=VolumeSpec(size="1Gi")).with_finalizer("a/b").with_finalizer("a/c")
    assert volume.with_finalizer("a/b") is volume
    assert volume.metadata.finalizers == ("a/b", "a/c")
    assert volume.without_finalizer("a/b").metadata.finalizers == ("a/c",)
    assert volume.without_finalizer("a/none").metadata.finalizers == ("a/b", "a/c")


@pytest.mark.parametrize(
    ("modes", "several"),
    [
        ((AccessMode.READ_WRITE_ONCE,), False),
        ((AccessMode.READ_WRITE_ONCE_POD,), False),
        ((AccessMode.READ_WRITE_ONCE, AccessMode.READ_ONLY_MANY), True),
        ((AccessMode.READ_WRITE_MANY,), True),
    ],
)
def test_only_a_mode_for_many_lets_several_nodes_in(modes: tuple[AccessMode, ...], several: bool) -> None:
    assert VolumeSpec(size="1Gi", access_modes=modes).multi_attach is several


def test_an_attachment_names_its_volume_across_namespaces() -> None:
    def key(**spec: str) -> tuple[str, str]:
        body = {"metadata": {"name": "a", "namespace": "ns"}, "spec": {"volume": "v", "node": "n", **spec}}
        return Attachment.model_validate(body).volume_key

    assert key() == ("ns", "v")
    assert key(volumeNamespace="other") == ("other", "v")


# merge patches ----------------------------------------------------------------------------------------
def apply(target: object, patch: object) -> object:
    """RFC 7386, section 2, word by word."""
    if not isinstance(patch, dict):
        return patch
    out: dict[str, object] = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            out.pop(key, None)
        else:
            out[key] = apply(out.get(key), value)
    return out


json = st.recursive(
    st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=12,
)
objects = st.dictionaries(words, json, max_size=3)


@given(objects, objects)
def test_a_patch_leads_from_one_to_the_other(before: dict[str, object], after: dict[str, object]) -> None:
    assert apply(before, merge_patch(before, after)) == after


@given(objects, objects)
def test_a_patch_is_empty_exactly_where_nothing_differs(
    before: dict[str, object], after: dict[str, object]
) -> None:
    assert (merge_patch(before, after) == {}) is (before == after)


@given(objects, objects, objects)
def test_what_neither_side_knows_stays(
    before: dict[str, Any], after: dict[str, Any], unknown: dict[str, Any]
) -> None:
    """A field that a newer version added is in the stored object and in neither of ours."""
    hidden = {f"later-{key}": value for key, value in unknown.items()}
    stored = {**before, **hidden}
    assert apply(stored, merge_patch(before, after)) == {**after, **hidden}
