"""An API server with our CRDs, spoken to as a person's manifests would."""

import uuid
from collections.abc import Iterator

import pytest
from raw_api import RawApi
from tests.conftest import ApiServer


@pytest.fixture(scope="session")
def served(apiserver: ApiServer) -> ApiServer:
    apiserver.apply_crds()
    return apiserver


@pytest.fixture
def api(served: ApiServer) -> Iterator[RawApi]:
    raw = RawApi(served.kubeconfig)
    yield raw
    raw.close()


@pytest.fixture
def name() -> str:
    """Of this test's object; tests share a server."""
    return f"t-{uuid.uuid4().hex[:12]}"
