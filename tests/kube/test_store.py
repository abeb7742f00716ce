"""The store is fed by three racing feeds: nothing older may win, and no ghost may come back."""

from cinderblock.core.api import Volume
from cinderblock.core.api.meta import ObjectMeta
from cinderblock.core.api.volume import VolumeSpec
from cinderblock.core.kube.port import Listing
from cinderblock.core.kube.store import Store


def volume(name, version, *, size="1Gi", namespace="ns"):
    return Volume(
        metadata=ObjectMeta(name=name, namespace=namespace, uid=f"u-{name}", resource_version=str(version)),
        spec=VolumeSpec(size=size),
    )


def make():
    store = Store(Volume, {"size": lambda v: (v.spec.size,)})
    seen = []
    store.subscribe(lambda old, new: seen.append((old and version(old), new and version(new))))
    return store, seen


def version(obj):
    return obj.metadata.resource_version


def test_an_older_version_is_ignored_and_versions_compare_as_numbers():
    store, seen = make()
    assert store.apply(volume("a", 9))
    assert store.apply(volume("a", 10, size="2Gi"))
    assert not store.apply(volume("a", 9))
    assert not store.apply(volume("a", 10))
    assert version(store.get("ns", "a")) == "10"
    assert seen == [(None, "9"), ("9", "10")]
    assert store.resource_version == "10"


def test_indexes_follow_every_change_and_leave_nothing_behind():
    store, _ = make()
    store.apply(volume("a", 1))
    store.apply(volume("b", 2))
    store.apply(volume("a", 3, size="2Gi"))
    assert [v.name for v in store.by("size", "1Gi")] == ["b"]
    assert [v.name for v in store.by("size", "2Gi")] == ["a"]
    store.remove(volume("a", 4))
    assert store.by("size", "2Gi") == []
    assert len(store) == 1


def test_a_late_answer_to_a_write_brings_no_ghost_back():
    store, seen = make()
    store.apply(volume("a", 5))
    store.remove(volume("a", 7))
    assert not store.apply(volume("a", 6))
    assert store.get("ns", "a") is None
    assert seen[-1] == ("5", None)
    store.replace(Listing([], "8"))
    assert not store.apply(volume("a", 6)), "one listing later the removal is still remembered"
    assert store.apply(volume("a", 9)), "made anew, or matching the selector again"


def test_a_removal_of_an_earlier_object_of_the_name_does_not_hit_the_new_one():
    store, _ = make()
    store.apply(volume("a", 9))
    assert not store.remove(volume("a", 7))
    assert store.get("ns", "a") is not None


def test_a_listing_drops_ghosts_but_nothing_newer_than_itself():
    store, seen = make()
    store.apply(volume("ghost", 3))
    store.apply(volume("newer", 12))
    store.apply(volume("same", 5))
    assert not store.synced.is_set()
    changed = store.replace(Listing([volume("same", 5), volume("fresh", 8)], "10"))
    assert changed == 2
    assert sorted(v.name for v in store.all()) == ["fresh", "newer", "same"]
    assert store.synced.is_set()
    assert ("3", None) in seen
    assert store.replace(Listing([volume("same", 5), volume("fresh", 8)], "11")) == 0


def test_a_listing_older_than_a_deletion_brings_nothing_back():
    store, _ = make()
    store.apply(volume("a", 5))
    store.remove(volume("a", 20))
    store.replace(Listing([volume("a", 5)], "10"))
    assert store.get("ns", "a") is None


def test_one_broken_listener_does_not_blind_the_others(caplog):
    store = Store(Volume)
    seen = []

    def broken(old, new):
        raise RuntimeError("broken")

    store.subscribe(broken)
    end = store.subscribe(lambda old, new: seen.append(new.name))
    store.apply(volume("a", 1))
    assert seen == ["a"]
    assert "broken" in caplog.text
    end()
    store.apply(volume("b", 2))
    assert seen == ["a"]


def test_cluster_scoped_objects_have_no_namespace():
    store, _ = make()
    store.apply(volume("a", 1, namespace=None))
    assert store.get(None, "a") is store.get("", "a") is not None
