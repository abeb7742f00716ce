"""Where the API server is and who we are to it, read by the official client's configuration code.

In a pod: the service account, whose token the kubelet replaces while we run. Elsewhere: a kubeconfig with client
certificates, a token or an exec plug-in.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from pathlib import Path

from kubernetes.aio import config
from kubernetes.aio.client import Configuration

from cinderblock.core.kube.port import KubeError

_TOKEN_SECONDS = 30.0  # the official code reads the token anew once a minute


class ConfigurationError(KubeError):
    """There is no usable kubeconfig or service account; the message says which."""


class Credentials:
    """Made by `load`; one per process."""

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration
        self._header: str | None = None
        self._header_until = 0.0
        self.server = str(configuration.host).rstrip("/")
        self.ca_path: str | None = configuration.ssl_ca_cert
        self.certificate_path: str | None = configuration.cert_file
        self.key_path: str | None = configuration.key_file
        self.verify = bool(configuration.verify_ssl)
        self.server_hostname: str | None = configuration.tls_server_name
        self.proxy: str | None = configuration.proxy

    @classmethod
    async def load(cls, kubeconfig: Path | None) -> Credentials:
        """Of a kubeconfig file, or of the pod that we run in when there is none."""
        configuration = Configuration()
        try:
            if kubeconfig is None:
                config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
            else:
                await config.load_kube_config(  # type: ignore[no-untyped-call]
                    config_file=str(kubeconfig), client_configuration=configuration, persist_config=False
                )
        except (config.ConfigException, OSError) as error:
            where = "service account of this pod" if kubeconfig is None else f"kubeconfig {kubeconfig}"
            raise ConfigurationError(f"{where}: {error}") from None
        return await asyncio.to_thread(cls, configuration)

    def ssl_context(self) -> ssl.SSLContext | None:
        if not self.server.startswith("https:"):
            return None
        context = ssl.create_default_context(cafile=self.ca_path)
        if self.certificate_path:
            context.load_cert_chain(self.certificate_path, self.key_path)
        if not self.verify:  # the kubeconfig's own insecure-skip-tls-verify
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    async def authorization(self) -> str | None:
        """The Authorization header of now; None where a client certificate speaks for us."""
        now = time.monotonic()
        if now >= self._header_until:
            settings = await self._configuration.auth_settings()
            token = settings.get("BearerToken")
            self._header = token["value"] if token else None
            if self._header is None and self._configuration.username:
                self._header = self._configuration.get_basic_auth_token()
            self._header_until = now + _TOKEN_SECONDS
        return self._header

    def forget_token(self) -> None:
        """The server did not take it: read it anew for the next call."""
        self._header_until = 0.0
