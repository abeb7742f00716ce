"""A CSI controller on a real socket, over the fake API server and the fake operator; for tests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from fake_kube import FakeKube
from fake_operator import NOW, FakeOperator
from prometheus_client import CollectorRegistry

from cinderblock.core.api.backend import POOL_READY, Pool, PoolSpec, PoolStatus
from cinderblock.core.api.builtin import PersistentVolumeClaim
from cinderblock.core.api.meta import ObjectMeta, set_condition
from cinderblock.core.api.node import StorageNode
from cinderblock.core.clock import SystemClock
from cinderblock.core.units import GIB
from cinderblock.csi.controller_main import controller
from cinderblock.csi.gateway.controller import ControllerGateway
from cinderblock.csi.pb import csi_pb2, csi_pb2_grpc

RELEASE = "cinderblock"
Code = grpc.StatusCode


class Rig:
    """`stub` calls the controller that `controller()` last started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kube = FakeKube()
        self.operator = FakeOperator(self.kube)
        self.stub: Any = None
        self.identity: Any = None
        self.gateway: ControllerGateway | None = None

    @contextlib.asynccontextmanager
    async def controller(self, name: str = "csi.sock") -> AsyncIterator[Any]:
        path = self.folder / name
        async with (
            controller(self.kube, path, RELEASE, CollectorRegistry(), SystemClock()) as gateway,
            grpc.aio.insecure_channel(f"unix:{path}") as channel,
        ):
            self.gateway = gateway
            self.stub, self.identity = (
                csi_pb2_grpc.ControllerStub(channel),
                csi_pb2_grpc.IdentityStub(channel),
            )
            async with asyncio.timeout(5):
                while not gateway.caches.synced:
                    await asyncio.sleep(0.001)
            yield self.stub

    async def pool(
        self, name: str = "pool", node: str | None = None, total_bytes: int = 100 * GIB, **status: Any
    ) -> Pool:
        pool = await self.kube.create(
            Pool(metadata=ObjectMeta(name=name), spec=PoolSpec(backend="backend", host="host", node=node))
        )
        ready = set_condition((), POOL_READY, True, reason="Open", generation=1, now=NOW)
        values = {
            "total_bytes": total_bytes,
            "free_bytes": total_bytes,
            "over_subscription_ratio": "1",
            "physical_floor_percent": 0,
            "conditions": ready,
        }
        return await self.kube.update_status(pool, pool.with_(status=PoolStatus(**(values | status))))

    async def node(self, name: str) -> None:
        await self.kube.create(StorageNode(metadata=ObjectMeta(name=name)))

    async def claim(self, name: str = "data", namespace: str = "tenant") -> PersistentVolumeClaim:
        return await self.kube.create(
            PersistentVolumeClaim(metadata=ObjectMeta(name=name, namespace=namespace))
        )


@contextlib.asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Rig]:
    """The whole rig with one pool and the nodes n1 and n2."""
    rig = Rig(folder)
    await rig.pool()
    await rig.node("n1")
    await rig.node("n2")
    operator = asyncio.create_task(rig.operator.run())
    try:
        async with rig.controller():
            yield rig
    finally:
        operator.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await operator


def mount(mode: str = "SINGLE_NODE_WRITER", fs_type: str = "ext4") -> csi_pb2.VolumeCapability:
    return csi_pb2.VolumeCapability(
        mount=csi_pb2.VolumeCapability.MountVolume(fs_type=fs_type),
        access_mode=csi_pb2.VolumeCapability.AccessMode(mode=mode),
    )


def block(mode: str = "SINGLE_NODE_WRITER") -> csi_pb2.VolumeCapability:
    return csi_pb2.VolumeCapability(
        block=csi_pb2.VolumeCapability.BlockVolume(),
        access_mode=csi_pb2.VolumeCapability.AccessMode(mode=mode),
    )


def create_request(name: str = "vol", size_bytes: int = GIB, limit_bytes: int = 0, **more: Any) -> Any:
    more.setdefault("volume_capabilities", [mount()])
    return csi_pb2.CreateVolumeRequest(
        name=name,
        capacity_range=csi_pb2.CapacityRange(required_bytes=size_bytes, limit_bytes=limit_bytes),
        **more,
    )


async def refused(call: Any) -> tuple[grpc.StatusCode, str]:
    """Code and message of a call that must fail; the message must say something."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.details()
    return caught.value.code(), caught.value.details() or ""


async def eventually(condition: Any, seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.002)
