"""Where the API server is and who we are to it.

In a pod: the service account, whose token the kubelet replaces while we run. Elsewhere: a kubeconfig
(core/kube/kubeconfig.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from cinderblock.core.kube.port import KubeError

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TOKEN_SECONDS = 30.0


class ConfigurationError(KubeError):
    """There is no usable kubeconfig or service account; the message says which."""


class Credentials:
    """Made by `load`; one per process. `ask` gives the Authorization header of now, None = there is none."""

    def __init__(
        self,
        server: str,
        ask: Callable[[], Awaitable[str | None]],
        *,
        ca_path: str | None = None,
        certificate_path: str | None = None,
        key_path: str | None = None,
        verify: bool = True,
        server_hostname: str | None = None,
        proxy: str | None = None,
    ) -> None:
        self.server = server
        self.server_hostname = server_hostname
        self.proxy = proxy
        self._ask = ask
        self._ca_path = ca_path
        self._certificate_path = certificate_path
        self._key_path = key_path
        self._verify = verify
        self._header: str | None = None
        self._header_until = 0.0

    @classmethod
    async def load(cls, kubeconfig: Path | None) -> Credentials:
        """Of a kubeconfig file, or of the pod that we run in when there is none. Errors: ConfigurationError."""
        if kubeconfig is None:
            return await asyncio.to_thread(in_pod, os.environ, SERVICE_ACCOUNT)
        from cinderblock.core.kube.kubeconfig import load_kubeconfig

        return await load_kubeconfig(kubeconfig)

    def ssl_context(self) -> ssl.SSLContext | None:
        if not self.server.startswith("https:"):
            return None
        context = ssl.create_default_context(cafile=self._ca_path)
        if self._certificate_path:
            context.load_cert_chain(self._certificate_path, self._key_path)
        if not self._verify:  # the kubeconfig's own insecure-skip-tls-verify
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    async def authorization(self) -> str | None:
        """The Authorization header of now; None where a client certificate speaks for us."""
        now = time.monotonic()
        if now >= self._header_until:
            self._header = await self._ask()
            self._header_until = now + _TOKEN_SECONDS
        return self._header

    def forget_token(self) -> None:
        """The server did not take it: read it anew for the next call."""
        self._header_until = 0.0


def in_pod(environment: Mapping[str, str], folder: Path) -> Credentials:
    """Of the pod that we run in (Kubernetes documentation, "Accessing the API from within a Pod").

    Errors: ConfigurationError.
    """
    host, port = (
        environment.get("KUBERNETES_SERVICE_HOST", ""),
        environment.get("KUBERNETES_SERVICE_PORT", ""),
    )
    if not host or not port:
        raise ConfigurationError("service account of this pod: we run in no pod (KUBERNETES_SERVICE_HOST)")
    ca, token = folder / "ca.crt", folder / "token"
    last = _read_token(token)
    if not ca.is_file():
        raise ConfigurationError(f"service account of this pod: {ca} is missing")

    async def authorization() -> str:
        nonlocal last
        with contextlib.suppress(ConfigurationError):  # being replaced: the one before it is good for a while
            last = await asyncio.to_thread(_read_token, token)
        return f"Bearer {last}"

    return Credentials(
        f"https://{f'[{host}]' if ':' in host else host}:{port}", authorization, ca_path=str(ca)
    )


def _read_token(file: Path) -> str:
    try:
        token = file.read_text().strip()
    except OSError as error:
        raise ConfigurationError(f"service account of this pod: {file}: {error.strerror}") from None
    if not token:
        raise ConfigurationError(f"service account of this pod: {file} is empty")
    return token
