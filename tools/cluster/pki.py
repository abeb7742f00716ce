"""Certificates and kubeconfigs of a cluster, made with openssl, all in one folder of mode 0700."""

import base64
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from tools.shell import run

_DAYS = "365"
_DEADLINE_SECONDS = 30.0


@dataclass(frozen=True)
class KeyPair:
    """A key and its certificate."""

    key: Path
    certificate: Path


@dataclass(frozen=True)
class Authority:
    """A cluster's certificate authority and the service accounts' signing key. Every method is idempotent."""

    folder: Path

    @property
    def certificate(self) -> Path:
        """Public part of the authority."""
        return self.folder / "ca.crt"

    @property
    def service_accounts(self) -> KeyPair:
        """The signing key of service account tokens; `certificate` is its public key."""
        return KeyPair(self.folder / "sa.key", self.folder / "sa.pub")

    def ensure(self) -> None:
        """Make what is missing."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not self.certificate.exists():
            key, new = self.folder / "ca.key", self.folder / "ca.crt.new"
            _openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key)
            subject = f"/CN=cinderblock-dev-{secrets.token_hex(4)}"
            # Python 3.13 checks strictly: an authority must say that it may sign.
            usage = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
            _openssl(
                "req", "-x509", "-new", "-key", key, "-out", new, "-days", _DAYS, "-subj", subject, *usage
            )
            new.rename(self.certificate)
        accounts = self.service_accounts
        if not accounts.certificate.exists():
            new = self.folder / "sa.pub.new"
            _openssl("genrsa", "-out", accounts.key, "2048")
            _openssl("rsa", "-in", accounts.key, "-pubout", "-out", new)
            new.rename(accounts.certificate)

    def issue(self, name: str, subject: str, alternatives: Sequence[str]) -> KeyPair:
        """A key pair for `subject`, valid as client and server under the alternative names; made once per
        name."""
        pair = KeyPair(self.folder / f"{name}.key", self.folder / f"{name}.crt")
        if pair.certificate.exists():
            return pair
        request, extensions = self.folder / f"{name}.csr", self.folder / f"{name}.ext"
        new = self.folder / f"{name}.crt.new"
        usage = (
            "basicConstraints=critical,CA:FALSE\nextendedKeyUsage=clientAuth,serverAuth\n"
            "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
        )
        extensions.write_text(f"subjectAltName={','.join(alternatives)}\n{usage}")
        _openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", pair.key)
        _openssl("req", "-new", "-key", pair.key, "-subj", subject, "-out", request)
        authority = ("-CA", self.certificate, "-CAkey", self.folder / "ca.key", "-CAcreateserial")
        files = ("-in", request, "-out", new, "-extfile", extensions)
        _openssl("x509", "-req", *files, *authority, "-days", _DAYS)
        new.rename(pair.certificate)
        return pair


def write_kubeconfig(path: Path, url: str, authority: Authority, pair: KeyPair) -> None:
    """A kubeconfig that holds its certificates itself, so that it can be copied; readable by its owner
    alone."""
    cluster = {"server": url, "certificate-authority-data": _encoded(authority.certificate)}
    user = {
        "client-certificate-data": _encoded(pair.certificate),
        "client-key-data": _encoded(pair.key),
    }
    name = "cinderblock-dev"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": cluster}],
        "users": [{"name": name, "user": user}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "current-context": name,
    }
    new = path.with_name(f"{path.name}.new")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:
        yaml.safe_dump(config, stream)
    new.rename(path)


def _encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def _openssl(*arguments: str | Path) -> None:
    run(["openssl", *arguments], timeout=_DEADLINE_SECONDS)
