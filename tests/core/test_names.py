"""Names that two processes make on their own and that must come out equal, valid and apart."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cinderblock.core import names

NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
LABEL_VALUE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")

dns_names = st.from_regex(NAME, fullmatch=True).filter(lambda name: len(name) <= 253)
anything = st.text(min_size=1, max_size=300)


def is_name(text: str) -> bool:
    return len(text) <= 253 and NAME.fullmatch(text) is not None


@given(dns_names)
def test_a_host_name_is_a_label_value_and_never_the_operators(node: str) -> None:
    host = names.host_name(node)
    assert LABEL_VALUE.fullmatch(host)
    assert host != names.OPERATOR_HOST
    assert is_name(names.host_lease(host))
    assert host == names.host_name(node)


def test_short_node_names_stay_as_they_are() -> None:
    assert names.host_name("node-1.example.com") == "node-1.example.com"
    assert names.host_name("n" * 63) == "n" * 63
    assert re.fullmatch(r"n-[0-9a-f]{40}", names.host_name("n" * 64))
    assert re.fullmatch(r"n-[0-9a-f]{40}", names.host_name("operator"))
    assert names.host_name("n" * 64) != names.host_name("n" * 65)


@given(dns_names, st.none() | dns_names, st.none() | anything)
def test_a_pool_name_is_an_object_name(backend: str, node: str | None, pool: str | None) -> None:
    assert is_name(names.pool_name(backend, node, pool))


def test_pool_names_are_plain_where_that_is_valid() -> None:
    assert names.pool_name("file", "node-1", None) == "file-node-1"
    assert names.pool_name("lvm", "node-1", "vg0") == "lvm-node-1-vg0"
    assert names.pool_name("ceph", None, "rbd") == "ceph-rbd"


def test_pools_whose_own_names_are_no_object_names_are_still_apart() -> None:
    odd = {names.pool_name("b", "n", pool) for pool in ("Pool_1", "pool_1", "pool 1", "pool/1", "-", "." * 3)}
    assert len(odd) == 6
    assert all(is_name(name) for name in odd)


@given(anything)
def test_a_csi_name_of_any_kind_becomes_an_object_name_and_a_label(csi_name: str) -> None:
    assert is_name(names.volume_cr_name(csi_name))
    assert LABEL_VALUE.fullmatch(names.csi_name_label(csi_name))


@given(dns_names)
def test_a_csi_name_that_is_an_object_name_stays(csi_name: str) -> None:
    assert names.volume_cr_name(csi_name) == csi_name


@pytest.mark.parametrize(
    "csi_name", ["a..b", "a.-b", "a-.b", "-a", "a-", "a\n", "A", "ä", "a_b", "", "x" * 254]
)
def test_a_csi_name_that_is_none_is_hashed(csi_name: str) -> None:
    assert re.fullmatch(r"v-[0-9a-f]{40}", names.volume_cr_name(csi_name))


@given(anything, anything)
def test_names_of_different_volumes_and_nodes_are_apart(one: str, other: str) -> None:
    if one != other:
        assert names.volume_cr_name(one) != names.volume_cr_name(other)
        assert names.attachment_name(one, "n") != names.attachment_name(other, "n")
        assert names.attachment_name("h", one) != names.attachment_name("h", other)
        assert names.csi_name_label(one) != names.csi_name_label(other)


def test_an_attachments_name_is_valid_and_splits_handle_from_node() -> None:
    assert is_name(names.attachment_name("6e1f", "node-1"))
    assert names.attachment_name("a", "b") == names.attachment_name("a", "b")
    assert names.attachment_name("ab", "c") != names.attachment_name("a", "bc")


def test_backend_objects_are_named_by_handle_and_grant() -> None:
    assert names.object_name("6e1f", 3) == "6e1f-3"
