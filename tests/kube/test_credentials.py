"""In a pod: the service account's files, read without the official client, whose import costs 15 MB."""

import subprocess
import sys

import pytest

from cinderblock.core.kube.credentials import ConfigurationError, Credentials, in_pod

IN_POD = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}


@pytest.fixture
def account(tmp_path):
    (tmp_path / "token").write_text("first\n")
    (tmp_path / "ca.crt").write_text("certificate")
    return tmp_path


async def test_the_token_is_followed_when_the_kubelet_replaces_it(account):
    credentials = in_pod(IN_POD, account)
    assert credentials.server == "https://10.96.0.1:443"
    assert await credentials.authorization() == "Bearer first"
    (account / "token").write_text("second")
    assert await credentials.authorization() == "Bearer first"  # not read at every call
    credentials.forget_token()
    assert await credentials.authorization() == "Bearer second"
    (account / "token").unlink()
    credentials.forget_token()
    assert await credentials.authorization() == "Bearer second"


def test_an_address_of_ipv6_is_bracketed(account):
    assert in_pod(IN_POD | {"KUBERNETES_SERVICE_HOST": "fd00::1"}, account).server == "https://[fd00::1]:443"


@pytest.mark.parametrize(("missing", "said"), [("token", "token"), ("ca.crt", "ca.crt"), (None, "no pod")])
def test_what_is_missing_is_named(account, missing, said):
    if missing is not None:
        (account / missing).unlink()
    with pytest.raises(ConfigurationError, match=said):
        in_pod(IN_POD if missing else {}, account)


def test_an_empty_token_is_none(account):
    (account / "token").write_text("")
    with pytest.raises(ConfigurationError, match="is empty"):
        in_pod(IN_POD, account)


async def test_a_kubeconfig_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match="nowhere"):
        await Credentials.load(tmp_path / "nowhere")


@pytest.mark.parametrize("process", ["csi.controller_main", "csi.node_main"])
def test_no_process_imports_the_official_client_before_it_needs_it(process):
    program = f"import sys, cinderblock.{process}; sys.exit('kubernetes' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0
