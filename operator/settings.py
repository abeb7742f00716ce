"""kopf's settings, every one that matters set on purpose (kopf's defaults are for another kind of operator)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import kopf

from cinderblock.core.names import GROUP
from cinderblock.operator.engine.scope import Scope
from cinderblock.operator.events.feed import names
from cinderblock.operator.events.no_storage import NoDiffBase


class _Endless:
    """Pauses between tries that never run out: an outage of the API server is waited out, however long.

    kopf ends the whole operator when they do, and a restarted process would only wait in the kubelet's back-off.
    """

    def __iter__(self) -> Iterator[float]:
        return itertools.chain((0.5, 1, 1, 2, 3, 5, 8), itertools.repeat(10.0))


def kopf_settings(scope: Scope) -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()

    # The Lease is ours; kopf's peering is no election and pauses every operator at equal priorities.
    settings.peering.standalone = True

    # The kinds are known and exist before kopf starts (the stores have listed them).
    settings.scanning.disabled = True

    # Events about objects are posted by our own recorder, aggregated.
    settings.posting.enabled = False
    settings.posting.loggers = False

    watching = settings.watching
    watching.server_timeout = 600
    watching.client_timeout = 610
    watching.connect_timeout = 10
    watching.reconnect_backoff = 0.1
    watching.inactivity_timeout = 70  # bookmarks come every 60 s
    watching.chunk_size = 500
    watching.initial_streaming = False  # Kubernetes below 1.34 does not know it
    for watched in scope:
        if watched.field_selector:
            watching.field_selectors[names(watched.store.kind)] = watched.field_selector
        if watched.label_selector:
            watching.label_selectors[names(watched.store.kind)] = watched.label_selector

    # A worker of kopf lives while its object is busy; handlers only feed a Store, so there is nothing to limit.
    settings.queueing.worker_limit = None
    settings.queueing.idle_timeout = 1.0
    settings.queueing.exit_timeout = 0.5
    settings.queueing.error_delays = (1, 1, 2, 3, 5, 8, 13, 21, 34, 60)

    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 10
    settings.networking.error_backoffs = _Endless()
    settings.networking.enforce_retry_after = True

    # No change handlers, hence no progress, no diff base and no finalizer of kopf's; named so that nothing of ours
    # could ever be taken for another operator's.
    settings.persistence.finalizer = f"{GROUP}/kopf"
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=f"kopf.{GROUP}", v1=False)
    settings.persistence.diffbase_storage = NoDiffBase()
    settings.persistence.consistency_timeout = 5.0

    settings.execution.default_backoff = 10
    settings.background.cancellation_polling = 5
    settings.process.ultimate_exiting_timeout = None  # the process ends by its own rules (operator/main.py)
    return settings
