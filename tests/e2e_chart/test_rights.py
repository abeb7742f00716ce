"""Who may do what, asked of a real API server with the chart's Roles and admission policies."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from typing import Any

import pytest
from audit_log import TESTS_AGENT
from chart_world import NAMESPACE, VOLUMES, ChartWorld, volume

pytestmark = [pytest.mark.cluster, pytest.mark.root, pytest.mark.timeout(600)]

ATTACHMENTS, STORAGE_NODES = "attachments.cinderblock.io", "storagenodes.cinderblock.io"
TENANT, TEAM = "somebody", "team"
NODE_ACCOUNT = f"system:serviceaccount:{NAMESPACE}:cinderblock-node"
NAMESPACED, CLUSTER = (
    ("volumes", "attachments", "snapshots"),
    ("backends", "pools", "volumetypes", "storagenodes"),
)
READ, WRITE = {"get", "list", "watch"}, {"create", "update", "patch", "delete", "deletecollection"}


@pytest.fixture(scope="module", autouse=True)
def team(world: ChartWorld) -> None:
    """A namespace with one user of each of the built-in roles."""
    world.ensure_installed()
    objects: list[dict[str, Any]] = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": TEAM}},
        *(
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "RoleBinding",
                "metadata": {"name": role, "namespace": TEAM},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
                "subjects": [
                    {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": f"{TENANT}-{role}"}
                ],
            }
            for role in ("view", "edit", "admin")
        ),
    ]
    world.apply(*objects)
    # the controller manager adds the chart's rules to the built-in roles
    world.wait("edit to cover Volumes", lambda: bool(allowed(world, "edit", ["volumes"], ["create"])), 30)


def allowed(
    world: ChartWorld, role: str, resources: Any, verbs: Any, namespace: str = TEAM
) -> set[tuple[str, str]]:
    """(resource, verb) that SubjectAccessReviews grant to the user of a role."""
    asked = [(resource, verb) for resource in resources for verb in sorted(verbs)]
    reviews = []
    for resource, verb in asked:
        name, _, sub = resource.partition("/")
        attributes = {"group": "cinderblock.io", "resource": name, "verb": verb, "namespace": namespace}
        if sub:
            attributes["subresource"] = sub
        reviews.append(
            {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SubjectAccessReview",
                "spec": {"user": f"{TENANT}-{role}", "resourceAttributes": attributes},
            }
        )
    body = json.dumps({"apiVersion": "v1", "kind": "List", "items": reviews})
    shown = world.kube.kubectl("create", "-f", "-", "-o", "jsonpath={.status.allowed} ", stdin=body).split()
    assert set(shown) <= {"true", "false"}
    return {pair for pair, answer in zip(asked, shown, strict=True) if answer == "true"}


@pytest.mark.parametrize(("role", "verbs"), [("view", READ), ("edit", READ | WRITE), ("admin", READ | WRITE)])
def test_what_a_tenant_may_do_in_the_own_namespace(world: ChartWorld, role: str, verbs: set[str]) -> None:
    wanted = {(resource, verb) for resource in NAMESPACED for verb in verbs}
    assert allowed(world, role, NAMESPACED, READ | WRITE) == wanted
    assert not allowed(world, role, [f"{resource}/status" for resource in NAMESPACED], WRITE)
    assert not allowed(world, role, NAMESPACED, READ | WRITE, namespace="default")


def test_what_a_tenant_may_not_do_anywhere(world: ChartWorld) -> None:
    targets = [name for resource in CLUSTER for name in (resource, f"{resource}/status")]
    assert not allowed(world, "admin", targets, READ | WRITE, namespace="")


def as_tenant(role: str = "edit") -> tuple[str, ...]:
    return (f"--as={TENANT}-{role}",)


def attachment(name: str, namespace: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "cinderblock.io/v1alpha1",
        "kind": "Attachment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"volume": "v", "node": "node1", **spec},
    }


def test_a_tenant_makes_volumes_and_no_claim_of_others(world: ChartWorld) -> None:
    world.kube.kubectl("apply", "-f", "-", *as_tenant(), stdin=json.dumps(volume("mine", TEAM)))
    claim_ref = {"namespace": "default", "name": "theirs", "uid": "11111111-2222-3333-4444-555555555555"}
    for obj in (
        volume("stolen", TEAM, claimRef=claim_ref),
        attachment("stolen", TEAM, claimRef=claim_ref),
    ):
        assert "spec.claimRef" in world.refused("create", "-f", "-", *as_tenant(), obj=obj)
        assert "spec.claimRef" in world.refused("create", "-f", "-", obj=obj), "an administrator as well"
    foreign = attachment("foreign", TEAM, volumeNamespace="default")
    assert "volumeNamespace" in world.refused("create", "-f", "-", *as_tenant(), obj=foreign)
    world.kube.kubectl("create", "-f", "-", stdin=json.dumps(attachment("own", TEAM, volumeNamespace=TEAM)))
    world.kube.kubectl("delete", ATTACHMENTS, "own", "-n", TEAM, "--timeout=60s", timeout=70)


def test_a_tenant_writes_no_status_and_cannot_drop_what_protects_the_data(world: ChartWorld) -> None:
    world.ready_volume("protected", TEAM)
    patch = json.dumps({"status": {"phase": "Lost"}})
    said = world.refused(
        "patch",
        VOLUMES,
        "protected",
        "-n",
        TEAM,
        "--subresource=status",
        "--type=merge",
        "-p",
        patch,
        *as_tenant(),
    )
    assert "Forbidden" in said or "forbidden" in said
    for finalizers in ([], None, ["example.com/mine"]):
        patch = json.dumps({"metadata": {"finalizers": finalizers}})
        said = world.refused(
            "patch", VOLUMES, "protected", "-n", TEAM, "--type=merge", "-p", patch, *as_tenant()
        )
        assert "cinderblock.io/protect" in said, said
    more = json.dumps({"metadata": {"finalizers": ["cinderblock.io/protect", "example.com/mine"]}})
    world.kube.kubectl("patch", VOLUMES, "protected", "-n", TEAM, "--type=merge", "-p", more, *as_tenant())
    back = json.dumps({"metadata": {"finalizers": ["cinderblock.io/protect"]}})
    world.kube.kubectl("patch", VOLUMES, "protected", "-n", TEAM, "--type=merge", "-p", back, *as_tenant())
    world.kube.kubectl("delete", VOLUMES, "protected", "-n", TEAM, "--timeout=60s", *as_tenant(), timeout=70)


def test_a_node_writes_what_is_its_own_and_nothing_else(world: ChartWorld) -> None:
    """With the token that the kubelet gives the pod, bound to its node, and with one that names another."""
    world.ready_volume("v", TEAM)
    world.apply(attachment("a", TEAM))
    world.kube.kubectl(
        "wait", "-n", TEAM, "--for=condition=Connected", f"{ATTACHMENTS}/a", "--timeout=60s", timeout=70
    )
    other = {
        "apiVersion": "cinderblock.io/v1alpha1",
        "kind": "StorageNode",
        "metadata": {"name": "node1-neighbour"},
    }
    world.apply(other)
    node_pod = world.pod_names("node")[0]
    bound = world.kube.kubectl(
        "create", "token", "cinderblock-node", "-n", NAMESPACE, "--bound-object-kind=Pod",
        f"--bound-object-name={node_pod}",
    ).strip()  # fmt: skip
    loose = world.kube.kubectl("create", "token", "cinderblock-node", "-n", NAMESPACE).strip()

    def patch(kind: str, name: str, identity: dict[str, str], sub: str = "/status") -> tuple[int, str]:
        plural = kind.partition(".")[0]
        where = plural if kind == STORAGE_NODES else f"namespaces/{TEAM}/{plural}"
        body = {"status": {"bootID": "x"}} if sub else {"metadata": {"labels": {"x": "y"}}}
        return send(world, f"/apis/cinderblock.io/v1alpha1/{where}/{name}{sub}", body, identity)

    def refused(kind: str, name: str, identity: dict[str, str], sub: str = "/status") -> str:
        code, said = patch(kind, name, identity, sub)
        assert code == 403, said
        return said

    mine = bearer(bound)
    assert patch(ATTACHMENTS, "a", mine)[0] == 200
    assert patch(STORAGE_NODES, "node1", mine)[0] == 200
    reason = "only write objects of its own node"
    assert reason in refused(STORAGE_NODES, "node1-neighbour", mine)
    assert reason in refused(STORAGE_NODES, "node1-neighbour", mine, sub="")
    for identity in (
        bearer(loose),
        impersonated("node2"),
    ):
        assert reason in refused(ATTACHMENTS, "a", identity)
        assert reason in refused(STORAGE_NODES, "node1", identity)
    assert "forbidden" in refused(VOLUMES, "v", mine).lower()
    world.kube.kubectl("delete", STORAGE_NODES, "node1-neighbour")
    world.kube.kubectl("delete", ATTACHMENTS, "a", "-n", TEAM, "--timeout=60s", timeout=70)


def send(world: ChartWorld, path: str, body: dict[str, Any], identity: dict[str, str]) -> tuple[int, str]:
    """One bare PATCH: kubectl would read first, which these accounts may not."""
    plane = world.machinery.plane
    context = ssl.create_default_context(cafile=str(plane.authority.certificate))
    if "Authorization" not in identity:  # impersonation needs the administrator
        pki = plane.state_dir / "pki"
        context.load_cert_chain(pki / "admin.crt", pki / "admin.key")
    request = urllib.request.Request(plane.url + path, data=json.dumps(body).encode(), method="PATCH")
    for name, value in {"User-Agent": TESTS_AGENT, **identity}.items():
        request.add_header(name, value)
    request.add_header("Content-Type", "application/merge-patch+json")
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    try:
        with opener.open(request, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def impersonated(node: str) -> dict[str, str]:
    return {
        "Impersonate-User": NODE_ACCOUNT,
        "Impersonate-Group": f"system:serviceaccounts:{NAMESPACE}",
        "Impersonate-Extra-authentication.kubernetes.io%2Fnode-name": node,
    }


@pytest.fixture(scope="module", autouse=True)
def no_team_afterwards(world: ChartWorld, team: None) -> Any:
    yield
    world.kube.kubectl("delete", "namespace", TEAM, "--timeout=120s", timeout=130)
