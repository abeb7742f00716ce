"""kill -9 at every call to the kernel, and at random moments: the next process finds all or nothing, never a lie."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from crash_child import CrashServer, Order
from file_subject import FileSubject

from cinderblock.core.errors import IncompatibleExists
from cinderblock.drivers.base import CreateVolume, VolumeRef

REF = VolumeRef("3f1c0c9e-0000-4000-8000-000000000001", 1)
SMALL, LARGE = 1 << 20, 1 << 21
_MOST_CALLS = 60


@pytest.fixture(scope="module")
def server() -> Iterator[CrashServer]:
    server = CrashServer()
    yield server
    server.close()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("verb", "thick", "must_see"),
    [
        ("open", False, {"mkdir", "link", "fsync", "write"}),
        ("create", False, {"open", "setxattr", "ftruncate", "fsync", "rename"}),
        ("create", True, {"posix_fallocate", "rename"}),
        ("extend", False, {"ftruncate", "fsync"}),
        ("extend", True, {"posix_fallocate", "fsync"}),
        ("seal", False, {"setxattr", "fsync"}),
        ("delete", False, {"unlink", "fsync"}),
    ],
)
async def test_killed_at_every_call(
    tmp_path: Path, server: CrashServer, verb: str, thick: bool, must_see: set[str], after: bool
) -> None:
    create = CreateVolume(ref=REF, pool=None, size_bytes=SMALL, thick=thick)
    for at in range(1, _MOST_CALLS):
        root = tmp_path / str(at)
        root.mkdir()
        subject = FileSubject(root)
        pool_id = None
        if verb != "open":
            driver = subject.new_driver()
            await driver.open({})
            if verb != "create":
                await driver.create_volume(create)
            pool_id = (await driver.pools())[0].pool_id
            await driver.close()

        outcome = server.run(Order(str(root), verb, REF.handle, REF.grant, thick=thick, at=at, after=after))

        driver = subject.new_driver()
        await driver.open({} if pool_id is None else {None: pool_id})
        found = await driver.get_volume(REF)
        listed = await driver.inventory()
        assert [info for info in listed if info.complete] == ([] if found is None else [found])
        if found is not None:
            assert found.size_bytes in ((SMALL, LARGE) if verb == "extend" else (SMALL,))
            assert subject.read(REF, 0, LARGE) == bytes(found.size_bytes)
        if verb in ("extend", "seal"):
            assert found is not None, "nothing may take a volume away but its deletion"
            if verb == "extend":
                assert (await driver.extend_volume(REF, LARGE)).size_bytes == LARGE
            await driver.seal_volume(REF)
            assert (await driver.inventory())[0].sealed
        elif at % 2:
            # The next process repeats the create ...
            assert (await driver.create_volume(create)).size_bytes == SMALL
            assert len(await driver.inventory()) == 1
        # ... or gives up.
        await driver.delete_volume(REF)
        assert await driver.inventory() == []
        assert list((subject.folder / "volumes").iterdir()) == []
        await driver.close()
        if not outcome.killed:
            assert must_see <= set(outcome.calls), "the calls went another way than this test thinks"
            assert at == len(outcome.calls) + 1, "it was killed at each of them"
            return
    pytest.fail(f"{verb} takes more than {_MOST_CALLS} calls")


@pytest.mark.timeout(120)
async def test_killed_at_random_under_load(tmp_path: Path, server: CrashServer) -> None:
    subject = FileSubject(tmp_path)
    dice = random.Random(20)
    for round_number in range(25):
        order = Order(str(tmp_path), "busy", seed=round_number, delay=dice.uniform(0.0, 0.08))
        assert server.run(order).killed

        driver = subject.new_driver()
        await driver.open({})
        for info in await driver.inventory():
            found = await driver.get_volume(info.ref)
            if info.complete:
                assert found == info
                assert info.size_bytes in (SMALL, LARGE)
            elif found is None:
                remade = await driver.create_volume(CreateVolume(ref=info.ref, pool=None, size_bytes=SMALL))
                assert remade.complete
            else:
                with pytest.raises(IncompatibleExists):
                    await driver.create_volume(
                        CreateVolume(ref=info.ref, pool=None, size_bytes=found.size_bytes + SMALL)
                    )
        listed = await driver.inventory()
        assert len({info.ref for info in listed}) == len(listed)
        if round_number % 5 == 4:
            for info in listed:
                await driver.delete_volume(info.ref)
            assert list((subject.folder / "volumes").iterdir()) == []
            report = (await driver.pools())[0]
            assert (report.allocated_bytes, report.provisioned_bytes) == (0, 0)
        await driver.close()
