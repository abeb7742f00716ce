"""The reading half of the Kubernetes port, passed through: for ports that only put a condition on writes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TypeVar

from cinderblock.core.api.meta import Resource
from cinderblock.core.kube.port import Kube, Listing, WatchEvent

R = TypeVar("R", bound=Resource)


class PassedReads:
    """Base of such a port; `self._kube` is the port below."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube

    async def get(self, kind: type[R], name: str, namespace: str | None = None) -> R:
        return await self._kube.get(kind, name, namespace)

    async def list(
        self,
        kind: type[R],
        *,
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
    ) -> Listing[R]:
        return await self._kube.list(
            kind, namespace=namespace, label_selector=label_selector, field_selector=field_selector
        )

    def watch(
        self,
        kind: type[R],
        *,
        resource_version: str,
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
    ) -> AsyncIterator[WatchEvent[R]]:
        return self._kube.watch(
            kind,
            resource_version=resource_version,
            namespace=namespace,
            label_selector=label_selector,
            field_selector=field_selector,
        )
