"""kopf is told everything that matters: it neither posts, nor peers, nor scans, nor gives up."""

import itertools

import kopf

from cinderblock.operator.engine.scope import host_scope, leader_scope
from cinderblock.operator.engine.stores import make_stores
from cinderblock.operator.settings import kopf_settings


def test_nothing_is_left_to_defaults_made_for_other_operators():
    settings = kopf_settings(leader_scope(make_stores()))
    assert settings.peering.standalone
    assert settings.scanning.disabled
    assert not settings.posting.enabled
    assert not settings.posting.loggers
    assert settings.watching.inactivity_timeout > 62, "bookmarks come every 60 s"
    assert settings.watching.client_timeout > settings.watching.server_timeout
    assert not settings.watching.field_selectors, "the leader sees everything"


def test_pauses_between_tries_never_run_out_and_start_anew_each_time():
    pauses = kopf_settings(leader_scope(make_stores())).networking.error_backoffs
    assert list(itertools.islice(pauses, 100)) == list(itertools.islice(pauses, 100))
    assert max(itertools.islice(pauses, 100)) <= 10


def test_kopf_neither_copies_objects_nor_leaves_notes_in_them():
    storage = kopf_settings(leader_scope(make_stores())).persistence.diffbase_storage
    body = kopf.Body({"metadata": {"name": "v"}, "spec": {"size": "1Gi"}, "status": {"phase": "Available"}})
    patch = kopf.Patch()
    assert storage.build(body=body) == {}
    assert storage.fetch(body=body) is None
    storage.store(body=body, patch=patch, essence=storage.build(body=body))
    assert not patch


def test_a_host_asks_the_server_for_its_own_only():
    watching = kopf_settings(host_scope(make_stores(), "h1", "n1")).watching
    key = ("cinderblock.io", "v1alpha1")
    assert watching.field_selectors[(*key, "volumes")] == "status.allocation.host=h1"
    assert watching.field_selectors[(*key, "pools")] == "spec.host=h1"
    assert watching.field_selectors[("", "v1", "nodes")] == "metadata.name=n1"
    assert watching.label_selectors[(*key, "attachments")] == "cinderblock.io/host=h1"
    assert (*key, "backends") not in watching.field_selectors
