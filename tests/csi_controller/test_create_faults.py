"""CreateVolume while the API server fails at every single step: a final code only when nothing is left.

The provisioner forgets a volume after a final code, so one that still exists then is leaked for ever.
"""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from csi_rig import Code, Rig, create_request, running

from cinderblock.core.api.volume import Volume
from cinderblock.core.errors import GrpcCode
from cinderblock.core.kube.port import KubeUnavailable

NON_FINAL = {Code.ABORTED, Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.CANCELLED}
# POST, verdict, delete and the reads between them: more calls than one CreateVolume makes
STEPS = range(12)


class FailingKube:
    """The controller's own way to the API server: the call number `step` fails, before or after it had effect."""

    def __init__(self, inner: Any, step: int, late: bool) -> None:
        self._inner, self._step, self._late = inner, step, late
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if name not in ("get", "create", "update", "delete"):
            return method

        async def call(*args: Any, **more: Any) -> Any:
            self.calls += 1
            fails = self.calls == self._step + 1
            if fails and not self._late:
                raise KubeUnavailable("cut off before")
            result = await method(*args, **more)
            if fails:
                raise KubeUnavailable("cut off after")
            return result

        return call


async def converge(rig: Rig, request: Any) -> Any:
    """Repeat the call as the provisioner does, on a new process each time; the answer or the final code."""
    for attempt in range(20):
        async with rig.controller(f"c{attempt}.sock"):
            try:
                return await rig.stub.CreateVolume(request)
            except grpc.aio.AioRpcError as error:
                if error.code() not in NON_FINAL:
                    return error.code()
        await asyncio.sleep(0.01)
    raise AssertionError("never ends")


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("outcome", [None, GrpcCode.INTERNAL])
async def test_every_step_may_fail(tmp_path: Path, step: int, late: bool, outcome: GrpcCode | None) -> None:
    async with running(tmp_path) as rig:
        if outcome is not None:
            rig.operator.create_error = (outcome, "broken disk")
        parameters = {"csi.storage.k8s.io/pvc/name": "data", "csi.storage.k8s.io/pvc/namespace": "tenant"}
        claim = await rig.claim()
        request = create_request(f"pvc-{claim.uid}", parameters=parameters)
        true = rig.kube
        rig.kube = FailingKube(true, step, late)  # type: ignore[assignment]
        async with rig.controller("failing.sock"):
            try:
                first: Any = await rig.stub.CreateVolume(request)
            except grpc.aio.AioRpcError as error:
                first = error.code()
        rig.kube = true
        left = (await true.list(Volume)).items
        if isinstance(first, grpc.StatusCode) and first not in NON_FINAL:
            assert left == []
        final = await converge(rig, request)
        left = (await true.list(Volume)).items
        if outcome is None:
            assert [v.status.handle for v in left] == [final.volume.volume_id]
            assert rig.operator.created == [final.volume.volume_id]
        else:
            assert final is Code.INTERNAL
            assert left == []
