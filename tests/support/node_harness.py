"""The node process of tests: real sockets, mounts and loop devices, a FakeKube, and a host that plays along."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from fake_kube import FakeKube
from node_host import NAMESPACE, NODE, SimulatedHost
from node_pool import NodePool, clean
from prometheus_client import CollectorRegistry

from cinderblock.core.api.builtin import Node
from cinderblock.core.api.meta import ObjectMeta
from cinderblock.core.clock import SystemClock
from cinderblock.core.process import Result, SystemRunner
from cinderblock.csi.interceptors import Edge, RpcMetrics
from cinderblock.csi.node_main import NodePlugin, NodeSettings
from cinderblock.csi.pb import csi_pb2, csi_pb2_grpc

Mode = csi_pb2.VolumeCapability.AccessMode.Mode


class CountingRunner(SystemRunner):
    """`before(argv)` may raise, wait or act; `ran` remembers."""

    def __init__(self) -> None:
        self.ran: list[tuple[str, ...]] = []
        self.before: Callable[[Sequence[str]], Awaitable[None]] | None = None

    async def run(self, argv: Sequence[str], **options: Any) -> Result:
        self.ran.append(tuple(argv))
        if self.before is not None:
            await self.before(argv)
        return await super().run(argv, **options)

    def count(self, program: str, *words: str) -> int:
        return sum(argv[0] == program and set(words) <= set(argv) for argv in self.ran)


def capability(
    fs_type: str | None = "ext4", mode: str = "SINGLE_NODE_WRITER", flags: Sequence[str] = ()
) -> csi_pb2.VolumeCapability:
    """fs_type None = block."""
    made = csi_pb2.VolumeCapability(access_mode=csi_pb2.VolumeCapability.AccessMode(mode=Mode.Value(mode)))
    if fs_type is None:
        made.block.SetInParent()
    else:
        made.mount.fs_type = fs_type
        made.mount.mount_flags.extend(flags)
    return made


class NodeHarness:
    def __init__(self, root: Path, kube: Any = None) -> None:
        self.root = root
        self.pool = NodePool(root / "pools")
        for name in ("pools", "plugin", "staging", "pods"):
            (root / name).mkdir()
        self.kube = kube or FakeKube()
        self.host = SimulatedHost(self.kube, self.pool)
        self.runner = CountingRunner()
        self.boot_id = "boot-1"
        self.settings = NodeSettings(
            node=NODE,
            namespace=NAMESPACE,
            endpoint=f"unix://{root}/plugin/csi.sock",
            pools_root=self.pool.root,
            links_root=root / "links",
        )
        self.plugin: NodePlugin | None = None
        self._task: asyncio.Task[None] | None = None
        self._channel: grpc.aio.Channel | None = None

    @property
    def stub(self) -> csi_pb2_grpc.NodeStub:
        assert self._channel is not None
        return csi_pb2_grpc.NodeStub(self._channel)

    @property
    def agent_ready(self) -> bool:
        return self.plugin is not None and self.plugin.ready

    async def start(self) -> None:
        self.plugin = NodePlugin.build(
            self.kube,
            self.settings,
            runner=self.runner,
            clock=SystemClock(),
            boot_id=self.boot_id,
        )
        started = asyncio.Event()
        self._task = asyncio.create_task(self._serve(self.plugin, started))
        waiting = asyncio.create_task(started.wait())
        await asyncio.wait({self._task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if self._task.done():
            waiting.cancel()
            self._task.result()
        self._channel = grpc.aio.insecure_channel(f"unix:{self.root}/plugin/csi.sock")
        await until(lambda: self.agent_ready)

    async def _serve(self, plugin: NodePlugin, started: asyncio.Event) -> None:
        async with plugin.running(Edge(RpcMetrics(CollectorRegistry()))):
            started.set()
            await asyncio.Event().wait()

    async def stop(self) -> None:
        """A death: what is in work is not finished."""
        if self.plugin is not None:
            await self.plugin.work.drain(0)
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        if self._channel is not None:
            await self._channel.close()

    async def restart(self, *, boot_id: str | None = None) -> None:
        await self.stop()
        self.boot_id = boot_id or self.boot_id
        await self.start()

    def staging(self, name: str = "vol") -> str:
        path = self.root / "staging" / name
        path.mkdir(exist_ok=True)
        return str(path)

    def target(self, name: str = "pod") -> str:
        return str(self.root / "pods" / name)

    async def stage(
        self,
        handle: str,
        cap: csi_pb2.VolumeCapability | None = None,
        *,
        timeout: float = 20.0,
        path: str = "",
    ) -> None:
        request = csi_pb2.NodeStageVolumeRequest(
            volume_id=handle,
            staging_target_path=path or self.staging(),
            volume_capability=cap or capability(),
        )
        await self.stub.NodeStageVolume(request, timeout=timeout)

    async def unstage(self, handle: str, *, path: str = "", timeout: float = 20.0) -> None:
        request = csi_pb2.NodeUnstageVolumeRequest(
            volume_id=handle, staging_target_path=path or self.staging()
        )
        await self.stub.NodeUnstageVolume(request, timeout=timeout)

    async def publish(
        self,
        handle: str,
        cap: csi_pb2.VolumeCapability | None = None,
        *,
        target: str = "",
        readonly: bool = False,
    ) -> None:
        request = csi_pb2.NodePublishVolumeRequest(
            volume_id=handle,
            staging_target_path=self.staging(),
            target_path=target or self.target(),
            volume_capability=cap or capability(),
            readonly=readonly,
        )
        await self.stub.NodePublishVolume(request, timeout=20)

    async def unpublish(self, handle: str, *, target: str = "") -> None:
        request = csi_pb2.NodeUnpublishVolumeRequest(volume_id=handle, target_path=target or self.target())
        await self.stub.NodeUnpublishVolume(request, timeout=20)

    async def released(self, handle: str) -> None:
        await self.host.detach(handle)
        await until_gone(self.host, handle)

    def with_settings(self, **changes: Any) -> None:
        self.settings = replace(self.settings, **changes)


async def until(condition: Callable[[], Any], *, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.01)


async def until_gone(host: SimulatedHost, handle: str) -> None:
    async def gone() -> bool:
        listing = await host.kube.list(type(await host.attachment(handle)))
        return not listing.items

    from cinderblock.core.kube.port import ObjectNotFound

    with contextlib.suppress(ObjectNotFound):
        await until(gone)


@contextlib.asynccontextmanager
async def harness(root: Path, kube: Any = None) -> AsyncIterator[NodeHarness]:
    """A running node; at the end nothing of it may be left in the kernel. `kube`: default a FakeKube."""
    made = NodeHarness(root, kube)
    await made.kube.create(Node(metadata=ObjectMeta(name=NODE)))
    try:
        async with made.host.running():
            await made.start()
            yield made
    finally:
        await made.stop()
        left = clean(root)
    assert left == []


async def code_of(call: Awaitable[Any]) -> tuple[grpc.StatusCode, str]:
    """Code and message of a call that must fail; the message must say something."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.details()
    return caught.value.code(), caught.value.details() or ""
