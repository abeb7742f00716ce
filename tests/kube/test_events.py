"""Events tell people once, then count."""

from fake_clock import FakeClock
from fake_kube import FakeKube

from cinderblock.core.api import Volume
from cinderblock.core.api.builtin import Event
from cinderblock.core.api.meta import ObjectMeta
from cinderblock.core.api.volume import VolumeSpec
from cinderblock.core.kube.events import EventRecorder
from cinderblock.core.kube.port import Forbidden


def volume(name="v" * 253, namespace="ns"):
    return Volume(
        metadata=ObjectMeta(name=name, namespace=namespace, uid=f"u-{name[:5]}", resource_version="1"),
        spec=VolumeSpec(size="1Gi"),
    )


async def events(kube):
    return list((await kube.list(Event)).items)


async def test_a_fault_that_repeats_is_one_event_with_a_count():
    kube, clock = FakeKube(), FakeClock()
    recorder = EventRecorder(kube, "cinderblock", clock)
    for _ in range(200):
        await recorder.warn(volume(), "OutOfCapacity", "no room")
        await clock.advance(1)
    (event,) = await events(kube)
    assert event.type == "Warning"
    assert event.involved_object["kind"] == "Volume"
    assert event.involved_object["uid"] == "u-vvvvv"
    assert event.namespace == "ns"
    assert len(event.name) <= 253
    assert event.count == 181
    assert len(kube.writes) == 4


async def test_reasons_and_objects_are_told_apart():
    kube = FakeKube()
    recorder = EventRecorder(kube, "cinderblock", FakeClock())
    await recorder.warn(volume("a"), "OutOfCapacity", "no room")
    await recorder.warn(volume("a"), "QuotaExceeded", "too much")
    await recorder.warn(volume("b", namespace=None), "OutOfCapacity", "no room")
    found = await events(kube)
    assert len(found) == 3
    assert {e.namespace for e in found} == {"ns", "default"}


async def test_a_new_message_comes_through_sooner_than_a_repeat():
    kube, clock = FakeKube(), FakeClock()
    recorder = EventRecorder(kube, "cinderblock", clock)
    await recorder.warn(volume(), "OutOfCapacity", "5 GiB missing")
    await clock.advance(11)
    await recorder.warn(volume(), "OutOfCapacity", "4 GiB missing")
    (event,) = await events(kube)
    assert (event.message, event.count) == ("4 GiB missing", 2)


async def test_what_was_forgotten_is_found_again_and_an_expired_event_is_made_anew():
    kube, clock = FakeKube(), FakeClock()
    await EventRecorder(kube, "cinderblock", clock, instance="a").warn(volume(), "OutOfCapacity", "no room")
    recorder = EventRecorder(kube, "cinderblock", clock, instance="a")
    await recorder.warn(volume(), "OutOfCapacity", "no room")
    (event,) = await events(kube)
    assert event.count == 2
    await kube.delete(event)
    await clock.advance(61)
    await recorder.warn(volume(), "OutOfCapacity", "no room")
    assert len(await events(kube)) == 1


async def test_another_process_needs_no_right_to_read_events():
    kube, clock = FakeKube(), FakeClock()
    await EventRecorder(kube, "cinderblock", clock).warn(volume(), "OutOfCapacity", "no room")
    await EventRecorder(kube, "cinderblock", clock).warn(volume(), "OutOfCapacity", "no room")
    assert [verb for verb, _, _ in kube.writes] == ["create", "create"]
    assert len(await events(kube)) == 2


async def test_an_event_that_cannot_be_posted_hurts_nobody(caplog):
    kube = FakeKube()

    def refuse(verb, kind, name):
        raise Forbidden("no", status=403)

    kube.before_write = refuse
    await EventRecorder(kube, "cinderblock", FakeClock()).warn(volume(), "OutOfCapacity", "no room")
    assert "was not posted" in caplog.text
