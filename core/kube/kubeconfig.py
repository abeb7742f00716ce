"""Credentials of a kubeconfig, read by the official client: certificates, tokens, exec plug-ins, OIDC.

A module of its own, because that client costs a process 15 MB, and one that runs in a pod needs none of it.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from kubernetes.aio import config
from kubernetes.aio.client import Configuration

from cinderblock.core.kube.credentials import ConfigurationError, Credentials


async def load_kubeconfig(path: Path) -> Credentials:
    """Errors: ConfigurationError."""
    configuration = Configuration()
    try:
        await config.load_kube_config(  # type: ignore[no-untyped-call]
            config_file=str(path), client_configuration=configuration, persist_config=False
        )
    except (config.ConfigException, OSError) as error:
        raise ConfigurationError(f"kubeconfig {path}: {error}") from None
    return await asyncio.to_thread(_credentials, configuration)


def _credentials(configuration: Configuration) -> Credentials:
    async def authorization() -> str | None:
        settings = await configuration.auth_settings()
        token = settings.get("BearerToken")
        if token:
            return str(token["value"])
        return str(configuration.get_basic_auth_token()) if configuration.username else None

    return Credentials(
        server=str(configuration.host).rstrip("/"),
        ask=authorization,
        ca_path=configuration.ssl_ca_cert,
        certificate_path=configuration.cert_file,
        key_path=configuration.key_file,
        verify=bool(configuration.verify_ssl),
        server_hostname=configuration.tls_server_name,
        proxy=configuration.proxy,
    )
