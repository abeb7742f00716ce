"""What an API server's audit log says about who did what, beside what RBAC lets them do."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Every request of the release's service accounts once it is decided; a watch is logged when it begins, too. And who
# changes bindings: after an uninstall took them away, a pod that is just ending is refused, and rightly so.
POLICY = """apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - {level: Metadata, userGroups: ["system:serviceaccounts:cinderblock"]}
  - level: Metadata
    verbs: [create, patch, delete]
    resources: [{group: rbac.authorization.k8s.io, resources: [rolebindings, clusterrolebindings]}]
  - {level: None}
"""


TESTS_AGENT = "test-of-rights"


@dataclass(frozen=True, order=True)
class Right:
    """One verb on one resource; `namespace` "" = everywhere."""

    group: str
    resource: str
    verb: str
    namespace: str = ""

    def __str__(self) -> str:
        where = f" in {self.namespace}" if self.namespace else ""
        group = f".{self.group}" if self.group else ""
        return f"{self.verb} {self.resource}{group}{where}"


@dataclass(frozen=True)
class Request:
    account: str
    right: Right  # with the namespace of the object
    code: int
    uri: str
    unbound: bool = False  # an uninstall had begun to take bindings away


def requests(log: Path, namespace: str) -> Iterator[Request]:
    """Of the service accounts of one namespace, requests for resources alone (not discovery)."""
    prefix = f"system:serviceaccount:{namespace}:"
    gone: set[str] = set()
    for line in log.read_text().splitlines():
        event: dict[str, Any] = json.loads(line)
        if event.get("userAgent", "").startswith(TESTS_AGENT):
            continue  # a test that tries what an account may not do
        user, target = event["user"]["username"], event.get("objectRef")
        if target and target.get("resource") in ("rolebindings", "clusterrolebindings"):
            binding = f"{target['resource']}/{target.get('name', '')}"
            if not binding.endswith("-hooks"):  # those come and go with every hook
                (gone.add if event["verb"] == "delete" else gone.discard)(binding)
        if not user.startswith(prefix) or not target or "resource" not in target:
            continue
        resource = target["resource"] + (f"/{target['subresource']}" if "subresource" in target else "")
        right = Right(target.get("apiGroup", ""), resource, event["verb"], target.get("namespace", ""))
        yield Request(
            user.removeprefix(prefix),
            right,
            event.get("responseStatus", {}).get("code", 0),
            event["requestURI"],
            unbound=bool(gone),
        )


def granted(objects: Iterable[dict[str, Any]], namespace: str) -> dict[str, set[Right]]:
    """Account -> rights, from Roles, ClusterRoles and their bindings."""
    roles: dict[tuple[str, str], list[dict[str, Any]]] = {}
    bindings = []
    for obj in objects:
        if obj["kind"] in ("Role", "ClusterRole"):
            roles[obj["kind"], obj["metadata"]["name"]] = obj.get("rules") or []
        elif obj["kind"] in ("RoleBinding", "ClusterRoleBinding"):
            bindings.append(obj)
    found: dict[str, set[Right]] = {}
    for binding in bindings:
        where = namespace if binding["kind"] == "RoleBinding" else ""
        rules = roles[binding["roleRef"]["kind"], binding["roleRef"]["name"]]
        rights = {
            Right(group, resource, verb, where)
            for rule in rules
            for group in rule["apiGroups"]
            for resource in rule["resources"]
            for verb in rule["verbs"]
        }
        for subject in binding["subjects"]:
            found.setdefault(subject["name"], set()).update(rights)
    return found


def unused(rights: set[Right], used: Iterable[Right], namespace: str) -> tuple[set[Right], set[Right]]:
    """(never used, granted everywhere and used in `namespace` alone)."""
    exact: set[Right] = set()
    elsewhere: set[Right] = set()
    for use in used:
        local = Right(use.group, use.resource, use.verb, namespace)
        everywhere = Right(use.group, use.resource, use.verb)
        if use.namespace == namespace and local in rights:
            exact.add(local)
            continue
        exact.add(everywhere)
        if use.namespace != namespace:
            elsewhere.add(everywhere)
    wide = {right for right in rights & exact if not right.namespace and right not in elsewhere}
    return rights - exact, wide
