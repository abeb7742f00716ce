"""Programs must start while gRPC's threads work in the same process: a fork there runs foreign code in the child."""

import asyncio

import grpc
from prometheus_client import CollectorRegistry

from cinderblock.core.process import SystemRunner
from cinderblock.csi.interceptors import Edge, RpcMetrics
from cinderblock.csi.pb import csi_pb2, csi_pb2_grpc
from cinderblock.csi.server import Service, serving
from cinderblock.csi.services.identity import IdentityService


async def test_no_program_dies_of_calls_that_are_served_meanwhile(tmp_path):
    services = [Service(csi_pb2.DESCRIPTOR.services_by_name["Identity"], IdentityService(lambda: True))]
    runner = SystemRunner()
    async with serving(tmp_path / "csi.sock", services, Edge(RpcMetrics(CollectorRegistry()))):

        async def calls() -> None:
            while True:
                async with grpc.aio.insecure_channel(f"unix:{tmp_path}/csi.sock") as channel:
                    await csi_pb2_grpc.IdentityStub(channel).Probe(csi_pb2.ProbeRequest())

        callers = [asyncio.create_task(calls()) for _ in range(4)]
        try:
            for _ in range(25):
                results = await asyncio.gather(*(runner.run(["echo", str(n)]) for n in range(8)))
                assert [int(r.stdout) for r in results] == list(range(8))
        finally:
            for caller in callers:
                caller.cancel()
            await asyncio.gather(*callers, return_exceptions=True)
