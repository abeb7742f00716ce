"""PersistentVolumes hold their Volume; Volumes of claims that are gone do not stay."""

from __future__ import annotations

import pytest
from control_bench import RELEASE, Bench

from cinderblock.core.api import Volume
from cinderblock.core.api.builtin import (
    CsiVolumeSource,
    ObjectRef,
    PersistentVolume,
    PersistentVolumeClaim,
    PersistentVolumeSpec,
    PersistentVolumeStatus,
)
from cinderblock.core.api.meta import ObjectMeta, find_condition, is_true
from cinderblock.core.api.volume import NAMED_BY_PV, ClaimReference
from cinderblock.core.names import CSI_DRIVER, FINALIZER_PROTECT, FINALIZER_PV


async def claim(bench: Bench, name: str = "c") -> ClaimReference:
    meta = ObjectMeta(name=name, namespace="tenant")
    made = await bench.kube.create(PersistentVolumeClaim(metadata=meta))
    return ClaimReference(namespace="tenant", name=name, uid=made.uid)


async def csi_volume(bench: Bench, reference: ClaimReference) -> Volume:
    await bench.add_volume("v", namespace=RELEASE, claim_ref=reference)
    await bench.settle()
    return await bench.volume("v", RELEASE)


async def name_it(
    bench: Bench,
    handle: str,
    *,
    name: str = "pv",
    phase: str = "Bound",
    policy: str = "Delete",
    driver: str = CSI_DRIVER,
) -> PersistentVolume:
    pv = PersistentVolume(
        metadata=ObjectMeta(name=name),
        spec=PersistentVolumeSpec(
            csi=CsiVolumeSource(driver=driver, volume_handle=handle),
            claim_ref=ObjectRef(namespace="tenant", name="c"),
            persistent_volume_reclaim_policy=policy,
        ),
        status=PersistentVolumeStatus(phase=phase),
    )
    made = await bench.kube.create(pv)
    await bench.settle()
    return made


async def turn(bench: Bench, phase: str, name: str = "pv") -> None:
    pv = await bench.kube.get(PersistentVolume, name)
    await bench.kube.update_status(pv, pv.with_(status=PersistentVolumeStatus(phase=phase)))
    await bench.settle()


async def test_a_pv_puts_a_finalizer_on_its_volume():
    async with Bench() as bench:
        await bench.standard()
        volume = await csi_volume(bench, await claim(bench))
        assert not volume.has_finalizer(FINALIZER_PV)
        pv = await name_it(bench, volume.status.handle)
        assert (await bench.volume("v", RELEASE)).has_finalizer(FINALIZER_PV)
        await bench.kube.delete(pv)
        await bench.settle()
        assert not (await bench.volume("v", RELEASE)).has_finalizer(FINALIZER_PV)


async def test_a_pv_of_another_driver_is_none_of_ours():
    async with Bench() as bench:
        await bench.standard()
        volume = await csi_volume(bench, await claim(bench))
        await name_it(bench, volume.status.handle, driver="ebs.example.com")
        assert not (await bench.volume("v", RELEASE)).has_finalizer(FINALIZER_PV)


async def test_deleting_a_volume_that_a_pv_names_waits_and_says_so():
    async with Bench() as bench:
        await bench.standard()
        volume = await csi_volume(bench, await claim(bench))
        await name_it(bench, volume.status.handle)
        await bench.make("v", RELEASE)
        await bench.kube.delete(await bench.volume("v", RELEASE))
        await bench.settle()
        held = await bench.volume("v", RELEASE)
        assert held.has_finalizer(FINALIZER_PV)
        assert "PersistentVolume pv" in find_condition(held.status.conditions, NAMED_BY_PV).message
        await turn(bench, "Released")  # the provisioner asks for DeleteVolume
        left = await bench.volume("v", RELEASE)
        assert not left.has_finalizer(FINALIZER_PV)
        assert not is_true(left.status.conditions, NAMED_BY_PV)
        assert left.has_finalizer(FINALIZER_PROTECT)  # the host's turn


@pytest.mark.parametrize(
    ("phase", "policy", "held"),
    [
        ("Bound", "Delete", True),
        ("Available", "Delete", True),
        ("Released", "Delete", False),
        ("Failed", "Delete", False),
        ("Released", "Retain", True),
    ],
)
async def test_which_pv_holds(phase, policy, held):
    async with Bench() as bench:
        await bench.standard()
        volume = await csi_volume(bench, await claim(bench))
        await name_it(bench, volume.status.handle, phase="Bound", policy=policy)
        await turn(bench, phase)
        assert (await bench.volume("v", RELEASE)).has_finalizer(FINALIZER_PV) is held


async def test_a_deletion_believes_no_absence_from_the_cache():
    async with Bench() as bench:
        await bench.standard()
        volume = await csi_volume(bench, await claim(bench))
        pv = await name_it(bench, volume.status.handle)
        await bench.kube.delete(await bench.volume("v", RELEASE))
        await bench.settle()
        bench.leader.stores.persistent_volumes.remove(pv)
        await bench.settle()
        assert (await bench.volume("v", RELEASE)).has_finalizer(FINALIZER_PV)


# orphans -------------------------------------------------------------------------------------------------


async def drop_claim(bench: Bench) -> None:
    await bench.kube.delete(await bench.kube.get(PersistentVolumeClaim, "c", "tenant"))
    await bench.settle()


async def deleted(bench: Bench) -> bool:
    return await bench.gone("v", RELEASE) or (await bench.volume("v", RELEASE)).deleting


async def test_a_claim_deleted_while_nothing_fits_leaves_nothing():
    async with Bench() as bench:
        await bench.add_type()
        await csi_volume(bench, await claim(bench))
        await drop_claim(bench)
        await bench.wait(230)
        assert not await deleted(bench)
        await bench.wait(15)
        assert await bench.gone("v", RELEASE)


async def test_made_but_never_attached_goes_too():
    async with Bench() as bench:
        await bench.standard()
        await csi_volume(bench, await claim(bench))
        await bench.make("v", RELEASE)
        await drop_claim(bench)
        await bench.wait(250)
        assert await deleted(bench)


async def test_what_may_hold_data_is_only_reported():
    async with Bench() as bench:
        await bench.standard()
        await csi_volume(bench, await claim(bench))
        volume = await bench.make("v", RELEASE)
        await bench.kube.update_status(volume, volume.with_(status=volume.status.with_(attach_generation=1)))
        await drop_claim(bench)
        await bench.wait(400)
        assert not await deleted(bench)
        assert await bench.events() == ["Orphaned"]


async def test_a_living_claim_keeps_its_volume():
    async with Bench() as bench:
        await bench.standard()
        await csi_volume(bench, await claim(bench))
        await bench.wait(1500)
        assert not await deleted(bench)


async def test_a_claim_of_the_same_name_is_another_claim():
    async with Bench() as bench:
        await bench.add_type()
        await csi_volume(bench, await claim(bench))
        await drop_claim(bench)
        await claim(bench)
        await bench.wait(250)
        assert await bench.gone("v", RELEASE)


async def test_a_pv_that_only_a_fresh_list_shows_keeps_the_volume():
    async with Bench() as bench:
        await bench.standard()
        volume = await csi_volume(bench, await claim(bench))
        await drop_claim(bench)
        bench.kube.silent = True
        await name_it(bench, volume.status.handle, policy="Retain")
        bench.kube.silent = False
        await bench.wait(400)
        assert not await deleted(bench)


async def test_a_pv_that_goes_after_its_claim_leaves_an_orphan():
    async with Bench() as bench:
        await bench.standard()
        volume = await csi_volume(bench, await claim(bench))
        pv = await name_it(bench, volume.status.handle)
        await bench.make("v", RELEASE)
        await drop_claim(bench)
        await bench.wait(300)
        assert not await deleted(bench)
        await bench.kube.delete(pv)
        await bench.wait(250)
        assert await deleted(bench)
