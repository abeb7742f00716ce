"""What every Kubernetes port keeps: the same tests against the one in memory and a real API server.

The tests of the whole project lean on the one in memory, so where the two differ the one in memory is wrong.
"""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from fake_kube import FakeKube

from cinderblock.core.api import Pool, Volume
from cinderblock.core.api.backend import PoolSpec
from cinderblock.core.api.meta import ObjectMeta
from cinderblock.core.api.volume import Allocation, VolumeSpec, VolumeStatus
from cinderblock.core.kube.adapter import ApiServerKube, connect
from cinderblock.core.kube.port import (
    Conflict,
    HistoryGone,
    Kube,
    ObjectExists,
    ObjectNotFound,
    Rejected,
    WatchEvent,
    WatchType,
)

if TYPE_CHECKING:
    from tests.conftest import ApiServer

NAMESPACE = "default"
LABEL = "example.com/run"


@pytest.fixture(scope="session")
def kubeconfig(apiserver: "ApiServer") -> Path:
    """Of a real API server that serves our kinds."""
    apiserver.apply_crds()
    return apiserver.kubeconfig


@pytest_asyncio.fixture(params=["memory", pytest.param("real", marks=pytest.mark.apiserver)])
async def kube(request: pytest.FixtureRequest) -> AsyncIterator[Kube]:
    if request.param == "memory":
        yield FakeKube()
        return
    async with connect(request.getfixturevalue("kubeconfig")) as real:
        yield real


@pytest.fixture
def run() -> str:
    """Tells the objects of one test from all others of a shared server."""
    return uuid.uuid4().hex[:12]


def volume(run: str, name: str = "v", **spec: object) -> Volume:
    return Volume(
        metadata=ObjectMeta(name=f"{run}-{name}", namespace=NAMESPACE, labels={LABEL: run}),
        spec=VolumeSpec.model_validate({"size": "1Gi", **spec}),
    )


def protected(obj: Volume) -> Volume:
    return obj.with_finalizer("example.com/hold")


def on(host: str, *, grant: int = 1) -> VolumeStatus:
    allocation = Allocation(backend="b", pool="p", host=host, size_bytes=1, grant=grant)
    return VolumeStatus(allocation=allocation, last_grant=grant)


def resized(obj: Volume, size: str) -> Volume:
    return obj.with_(spec=obj.spec.with_(size=size))


async def again(kube: Kube, obj: Volume) -> Volume:
    return await kube.get(Volume, obj.name, obj.namespace)


async def collect(stream: AsyncIterator[WatchEvent[Volume]], count: int) -> list[WatchEvent[Volume]]:
    """The next events of a watch, bookmarks left out."""
    found: list[WatchEvent[Volume]] = []
    async with asyncio.timeout(20), contextlib.aclosing(stream):  # type: ignore[type-var]
        async for event in stream:
            if event.type is not WatchType.BOOKMARK:
                found.append(event)
            if len(found) == count:
                break
    return found


# create and read --------------------------------------------------------------------------------------
async def test_what_was_created_is_read_back(kube: Kube, run: str) -> None:
    made = await kube.create(volume(run, volume_type="gold"))
    assert made.uid and made.metadata.resource_version and made.metadata.generation == 1
    assert made.metadata.creation_timestamp is not None
    assert (made.spec.size, made.spec.volume_type) == ("1Gi", "gold")
    assert await again(kube, made) == made


async def test_a_second_create_of_a_name_is_told_apart(kube: Kube, run: str) -> None:
    await kube.create(volume(run))
    with pytest.raises(ObjectExists):
        await kube.create(volume(run))


async def test_a_create_takes_no_status(kube: Kube, run: str) -> None:
    made = await kube.create(volume(run).with_(status=on("h1")))
    assert made.status == VolumeStatus()


@pytest.mark.parametrize("name", ["Upper", "under_score", "-dash", "dot.", "a..b", "x" * 254])
async def test_a_bad_name_is_rejected(kube: Kube, name: str) -> None:
    bad = volume("x").with_(metadata=ObjectMeta(name=name, namespace=NAMESPACE))
    with pytest.raises(Rejected):
        await kube.create(bad)


@pytest.mark.parametrize("value", ["x" * 64, "a b", "-a", "a/b"])
async def test_a_bad_label_is_rejected(kube: Kube, run: str, value: str) -> None:
    bad = volume(run).with_(metadata=ObjectMeta(name=run, namespace=NAMESPACE, labels={"l": value}))
    with pytest.raises(Rejected):
        await kube.create(bad)


async def test_what_is_missing_is_not_found(kube: Kube, run: str) -> None:
    with pytest.raises(ObjectNotFound):
        await kube.get(Volume, run, NAMESPACE)
    with pytest.raises(ObjectNotFound):
        await kube.get(Pool, run)


async def test_cluster_kinds_have_no_namespace(kube: Kube, run: str) -> None:
    pool = Pool(metadata=ObjectMeta(name=f"{run}-p"), spec=PoolSpec(backend="b", host="h"))
    made = await kube.create(pool)
    assert made.namespace is None
    assert await kube.get(Pool, made.name) == made
    await kube.delete(made)


# update -----------------------------------------------------------------------------------------------
async def test_spec_counts_as_generation_and_metadata_and_status_do_not(kube: Kube, run: str) -> None:
    made = await kube.create(volume(run))
    labelled = await kube.update(made, made.with_(metadata=made.metadata.with_(annotations={"a": "b"})))
    assert (labelled.metadata.generation, labelled.metadata.annotations) == (1, {"a": "b"})
    placed = await kube.update_status(labelled, labelled.with_(status=on("h1")))
    assert placed.metadata.generation == 1
    larger = await kube.update(placed, resized(placed, "2Gi"))
    assert (larger.metadata.generation, larger.spec.size) == (2, "2Gi")
    assert larger.status == on("h1")
    versions = [int(o.metadata.resource_version) for o in (made, labelled, placed, larger)]
    assert versions == sorted(set(versions))


async def test_what_does_not_differ_writes_nothing(kube: Kube, run: str) -> None:
    made = await kube.create(volume(run))
    assert await kube.update(made, made) == made
    assert await kube.update_status(made, made) == made
    assert (await again(kube, made)).metadata.resource_version == made.metadata.resource_version


async def test_a_stale_write_conflicts_and_changes_nothing(kube: Kube, run: str) -> None:
    made = await kube.create(volume(run))
    placed = await kube.update_status(made, made.with_(status=on("h1")))
    with pytest.raises(Conflict):
        await kube.update_status(made, made.with_(status=on("h2")))
    with pytest.raises(Conflict):
        await kube.update(made, resized(made, "2Gi"))
    assert await again(kube, made) == placed


async def test_two_writers_on_one_version_do_not_both_win(kube: Kube, run: str) -> None:
    made = await kube.create(volume(run))
    answers = await asyncio.gather(
        *(kube.update_status(made, made.with_(status=on(f"h{n}"))) for n in range(5)), return_exceptions=True
    )
    won = [answer for answer in answers if isinstance(answer, Volume)]
    assert len(won) == 1
    assert all(isinstance(answer, Conflict) for answer in answers if not isinstance(answer, Volume))
    assert await again(kube, made) == won[0]


async def test_update_leaves_the_status_and_update_status_the_rest(kube: Kube, run: str) -> None:
    made = await kube.create(volume(run))
    both = resized(made, "2Gi").with_(status=on("h1"))
    after_update = await kube.update(made, both)
    assert (after_update.spec.size, after_update.status) == ("2Gi", VolumeStatus())
    changed = resized(after_update, "3Gi").with_(status=on("h1"))
    after_status = await kube.update_status(after_update, changed)
    assert (after_status.spec.size, after_status.status) == ("2Gi", on("h1"))


async def test_a_field_that_became_none_is_removed(kube: Kube, run: str) -> None:
    made = await kube.create(volume(run))
    placed = await kube.update_status(made, made.with_(status=on("h1").with_(handle="h")))
    freed = await kube.update_status(placed, placed.with_(status=placed.status.with_(allocation=None)))
    assert freed.status.allocation is None
    assert (freed.status.handle, freed.status.last_grant) == ("h", 1)
    assert await again(kube, made) == freed


async def test_writing_to_what_is_gone_is_not_found(kube: Kube, run: str) -> None:
    made = await kube.create(volume(run))
    await kube.delete(made)
    with pytest.raises(ObjectNotFound):
        await kube.update(made, resized(made, "2Gi"))
    with pytest.raises(ObjectNotFound):
        await kube.update_status(made, made.with_(status=on("h1")))


async def test_a_successor_of_the_same_name_is_never_written_to(kube: Kube, run: str) -> None:
    old = await kube.create(volume(run))
    await kube.delete(old)
    new = await kube.create(volume(run))
    assert new.uid != old.uid
    with pytest.raises(Conflict):
        await kube.update(old, resized(old, "2Gi"))
    with pytest.raises(Conflict):
        await kube.update_status(old, old.with_(status=on("h1")))
    with pytest.raises(Conflict):
        await kube.delete(old)
    assert await again(kube, new) == new


@pytest.mark.parametrize(
    "change",
    [{"handle": "other"}, {"handle": None}, {"last_grant": 1}, {"attach_generation": 0}],
)
async def test_an_identity_stays_and_a_counter_never_falls(
    kube: Kube, run: str, change: dict[str, object]
) -> None:
    made = await kube.create(volume(run))
    status = on("h1", grant=2).with_(handle=f"h-{run}", attach_generation=1)
    placed = await kube.update_status(made, made.with_(status=status))
    with pytest.raises(Rejected):
        await kube.update_status(placed, placed.with_(status=status.with_(**change)))
    onwards = status.with_(allocation=None, last_grant=3, attach_generation=2)
    assert (await kube.update_status(placed, placed.with_(status=onwards))).status == onwards


# apply (of the two implementations, not of the port: the chart's hook alone uses it) ---------------------
async def test_apply_creates_then_takes_over_what_others_wrote(kube: Kube, run: str) -> None:
    assert isinstance(kube, ApiServerKube | FakeKube)
    made = await kube.apply(volume(run), manager="helm")
    assert made.spec.size == "1Gi"
    same = await kube.apply(volume(run), manager="helm")
    assert same.metadata.resource_version == made.metadata.resource_version, (
        "nothing changed, nothing written"
    )
    theirs = await kube.update(same, resized(same, "3Gi"))
    labelled = await kube.update(
        theirs, theirs.with_(metadata=theirs.metadata.with_(labels={**theirs.metadata.labels, "mine": "yes"}))
    )
    ours = await kube.apply(resized(volume(run), "2Gi"), manager="helm")
    assert ours.spec.size == "2Gi"
    assert ours.metadata.labels["mine"] == "yes"
    assert ours.uid == labelled.uid


# delete -----------------------------------------------------------------------------------------------
async def test_delete_without_finalizer_is_at_once_and_repeatable(kube: Kube, run: str) -> None:
    made = await kube.create(volume(run))
    await kube.delete(made)
    await kube.delete(made)
    with pytest.raises(ObjectNotFound):
        await again(kube, made)


async def test_delete_of_the_unchanged_object_only(kube: Kube, run: str) -> None:
    made = await kube.create(volume(run))
    changed = await kube.update(made, resized(made, "2Gi"))
    with pytest.raises(Conflict):
        await kube.delete(made, unchanged=True)
    await kube.delete(changed, unchanged=True)
    with pytest.raises(ObjectNotFound):
        await again(kube, made)
    await kube.delete(changed, unchanged=True)


async def test_delete_checks_the_uid_and_not_the_version(kube: Kube, run: str) -> None:
    made = await kube.create(volume(run))
    await kube.update_status(made, made.with_(status=on("h1")))
    await kube.delete(made)
    with pytest.raises(ObjectNotFound):
        await again(kube, made)


async def test_a_finalizer_holds_the_object_until_it_goes(kube: Kube, run: str) -> None:
    made = await kube.create(protected(volume(run)))
    await kube.delete(made)
    asked = await again(kube, made)
    assert asked.deleting
    assert asked.metadata.generation == made.metadata.generation + 1
    await kube.delete(made)
    assert await again(kube, made) == asked, "asking again changed something"
    placed = await kube.update_status(asked, asked.with_(status=on("h1")))
    assert placed.status == on("h1"), "a deleting object still takes status"
    with pytest.raises(ObjectExists):
        await kube.create(volume(run))
    await kube.update(placed, placed.without_finalizer("example.com/hold"))
    with pytest.raises(ObjectNotFound):
        await again(kube, made)


async def test_a_deleting_object_takes_no_new_finalizer(kube: Kube, run: str) -> None:
    made = await kube.create(protected(volume(run)))
    await kube.delete(made)
    asked = await again(kube, made)
    with pytest.raises(Rejected):
        await kube.update(asked, asked.with_finalizer("example.com/late"))
    await kube.update(asked, asked.without_finalizer("example.com/hold"))


# list -------------------------------------------------------------------------------------------------
async def test_list_by_label(kube: Kube, run: str) -> None:
    made = [await kube.create(volume(run, str(n))) for n in range(3)]
    await kube.create(volume(run + "x"))
    listing = await kube.list(Volume, namespace=NAMESPACE, label_selector=f"{LABEL}={run}")
    assert sorted(o.name for o in listing.items) == [o.name for o in made]
    assert int(listing.resource_version) >= int(made[-1].metadata.resource_version)
    others = await kube.list(Volume, label_selector=f"{LABEL},{LABEL}!={run}")
    assert run not in {o.metadata.labels[LABEL] for o in others.items}
    assert f"{run}x-v" in {o.name for o in others.items}
    unlabelled = await kube.list(Volume, label_selector=f"!{LABEL}")
    assert all(LABEL not in o.metadata.labels for o in unlabelled.items)


async def test_list_by_a_field_of_the_status(kube: Kube, run: str) -> None:
    here, there = await kube.create(volume(run, "here")), await kube.create(volume(run, "there"))
    here = await kube.update_status(here, here.with_(status=on(run)))
    await kube.update_status(there, there.with_(status=on(f"{run}-other")))
    listing = await kube.list(Volume, field_selector=f"status.allocation.host={run}")
    assert list(listing.items) == [here]
    unplaced = await kube.create(volume(run, "unplaced"))
    nowhere = await kube.list(
        Volume, field_selector="status.allocation.host=", label_selector=f"{LABEL}={run}"
    )
    assert list(nowhere.items) == [unplaced]


async def test_list_by_name(kube: Kube, run: str) -> None:
    made = await kube.create(volume(run))
    await kube.create(volume(run, "w"))
    assert list((await kube.list(Volume, field_selector=f"metadata.name={made.name}")).items) == [made]


@pytest.mark.parametrize("selector", ["spec.size=1Gi", ".status.handle=x", "status.phase=Error"])
async def test_only_declared_fields_can_be_selected(kube: Kube, selector: str) -> None:
    with pytest.raises(Rejected):
        await kube.list(Volume, field_selector=selector)


# watch ------------------------------------------------------------------------------------------------
async def test_a_watch_tells_all_that_came_after_its_version_in_order(kube: Kube, run: str) -> None:
    before = await kube.create(volume(run, "before"))
    start = (await kube.list(Volume)).resource_version
    made = await kube.create(protected(volume(run)))
    placed = await kube.update_status(made, made.with_(status=on("h1")))
    await kube.delete(placed)
    asked = await again(kube, made)
    await kube.update(asked, asked.without_finalizer("example.com/hold"))
    await kube.delete(before)
    stream = kube.watch(Volume, resource_version=start, namespace=NAMESPACE, label_selector=f"{LABEL}={run}")
    events = await collect(stream, 5)
    assert [(e.type, e.object.name) for e in events] == [
        (WatchType.ADDED, made.name),
        (WatchType.MODIFIED, made.name),
        (WatchType.MODIFIED, made.name),
        (WatchType.DELETED, made.name),
        (WatchType.DELETED, before.name),
    ]
    assert [e.object for e in events[:3]] == [made, placed, asked]
    versions = [int(e.object.metadata.resource_version) for e in events]
    assert versions == sorted(set(versions)), "a deletion has a version of its own"


async def test_a_watch_tells_what_happens_while_it_waits(kube: Kube, run: str) -> None:
    start = (await kube.list(Volume)).resource_version
    stream = kube.watch(Volume, resource_version=start, label_selector=f"{LABEL}={run}")
    waiting = asyncio.create_task(collect(stream, 2))
    await asyncio.sleep(0)
    made = await kube.create(volume(run))
    await kube.delete(made)
    assert [e.type for e in await waiting] == [WatchType.ADDED, WatchType.DELETED]


async def test_an_object_that_stops_matching_is_deleted_to_the_watch_and_lives(kube: Kube, run: str) -> None:
    made = await kube.create(volume(run))
    start = made.metadata.resource_version
    here = await kube.update_status(made, made.with_(status=on(run)))
    still = await kube.update_status(here, here.with_(status=on(run, grant=2)))
    moved = await kube.update_status(still, still.with_(status=on(f"{run}-other", grant=3)))
    back = await kube.update_status(moved, moved.with_(status=on(run, grant=4)))
    stream = kube.watch(Volume, resource_version=start, field_selector=f"status.allocation.host={run}")
    events = await collect(stream, 4)
    assert [e.type for e in events] == [
        WatchType.ADDED,
        WatchType.MODIFIED,
        WatchType.DELETED,
        WatchType.ADDED,
    ]
    left = events[2].object
    assert left.status.allocation == still.status.allocation, "it shows the last state that matched"
    assert left.metadata.resource_version == moved.metadata.resource_version
    assert await again(kube, made) == back


async def test_a_watch_of_a_namespace_or_label_sees_no_other(kube: Kube, run: str) -> None:
    start = (await kube.list(Volume)).resource_version
    await kube.create(volume(f"{run}x"))
    mine = await kube.create(volume(run))
    stream = kube.watch(Volume, resource_version=start, label_selector=f"{LABEL}={run}")
    assert [e.object for e in await collect(stream, 1)] == [mine]


async def test_a_watch_by_an_undeclared_field_is_rejected(kube: Kube) -> None:
    start = (await kube.list(Volume)).resource_version
    with pytest.raises(Rejected):
        await collect(kube.watch(Volume, resource_version=start, field_selector="spec.size=1Gi"), 1)


async def test_forgotten_history_is_told_and_not_passed_over() -> None:
    kube = FakeKube()  # that the real one says so is tested where a real etcd is compacted
    made = await kube.create(volume("r"))
    await kube.update_status(made, made.with_(status=on("h1")))
    kube.compact()
    with pytest.raises(HistoryGone):
        await collect(kube.watch(Volume, resource_version=made.metadata.resource_version), 1)
    latest = (await kube.list(Volume)).resource_version
    waiting = asyncio.create_task(collect(kube.watch(Volume, resource_version=latest), 1))
    await asyncio.sleep(0)
    await kube.delete(made)
    assert [e.type for e in await waiting] == [WatchType.DELETED]
