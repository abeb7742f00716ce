"""The file driver keeps the driver contract: on the test's own folder, on each filesystem, on a pool image."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("driver_contract")
from driver_contract import DriverContract  # noqa: E402
from file_subject import FileSubject  # noqa: E402
from loop_mount import filesystem, take_down_pool_image  # noqa: E402


class TestFileContractPlainFolder(DriverContract):
    @pytest.fixture
    def subject(self, tmp_path: Path) -> FileSubject:
        return FileSubject(tmp_path)


@pytest.fixture(scope="class", params=["xfs", "btrfs", "ext4"])
def mounted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with filesystem(tmp_path_factory.mktemp(request.param), request.param) as mount_point:
        yield mount_point


@pytest.mark.root
class TestFileContractFilesystems(DriverContract):
    @pytest.fixture
    def subject(self, mounted: Path) -> Iterator[FileSubject]:
        subject = FileSubject(mounted, directory=f"pools/{uuid.uuid4()}")
        yield subject
        for image in subject.folder.glob("volumes/*"):
            image.unlink()

    async def test_reflink_is_what_the_filesystem_has(
        self, subject: FileSubject, request: pytest.FixtureRequest
    ) -> None:
        kind = request.node.callspec.params["mounted"]
        driver = subject.new_driver()
        await driver.open({})
        (report,) = await driver.pools()
        await driver.close()
        assert report.capabilities["reflink"] == ("false" if kind == "ext4" else "true")


@pytest.mark.root
class TestFileContractPoolImage(DriverContract):
    @pytest.fixture
    def subject(self, tmp_path: Path) -> Iterator[FileSubject]:
        yield FileSubject(tmp_path, directory="default", poolImage={"size": "320Mi", "preallocate": False})
        take_down_pool_image(tmp_path, "default")
