"""The wires of the local cluster: a bridge with the API server's address, and a cable to each node's
namespace.

All packets are routed (CNI ptp), so no bridge netfilter is needed. Everything carries one of our names, and
making it again is harmless.
"""

import json
from pathlib import Path

from tools.cluster.layout import Layout, NodeLayout
from tools.shell import ToolError, run

_DEADLINE_SECONDS = 20.0
_FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
_NAMESPACES = Path("/run/netns")
_MOUNTS = Path("/proc/self/mountinfo")


def forwarding() -> str:
    """The machine's ip_forward setting, to be put back by `down`."""
    return _FORWARDING.read_text().strip()


def set_forwarding(value: str) -> None:
    """Write it only where it differs."""
    if forwarding() != value:
        _FORWARDING.write_text(value)


def ensure_bridge(cluster: Layout) -> None:
    """The bridge, up, with the API server's address; ToolError when another interface has this network."""
    for row in json.loads(_ip("-json", "-4", "route", "show", cluster.subnet) or "[]"):
        if row.get("dev") != cluster.bridge:
            raise ToolError(f"{cluster.subnet} is in use on this machine by {row.get('dev')}")
    if not link_exists(cluster.bridge):
        _ip("link", "add", cluster.bridge, "type", "bridge")
    _ip("addr", "replace", f"{cluster.api_address}/24", "dev", cluster.bridge)
    _ip("link", "set", cluster.bridge, "up")
    set_forwarding("1")
    if "-P FORWARD ACCEPT" not in run(["iptables", "-w", "-S", "FORWARD"], timeout=_DEADLINE_SECONDS):
        for rule in _rules(cluster):
            if not _has_rule(rule):
                run(["iptables", "-w", "-I", "FORWARD", *rule], timeout=_DEADLINE_SECONDS)


def remove_bridge(cluster: Layout) -> None:
    """The bridge and its firewall rules."""
    for rule in _rules(cluster):
        if _has_rule(rule):
            run(["iptables", "-w", "-D", "FORWARD", *rule], timeout=_DEADLINE_SECONDS)
    if link_exists(cluster.bridge):
        _ip("link", "del", cluster.bridge)


def ensure_node(node: NodeLayout) -> None:
    """The node's namespace, its cable, its address and the way to its pods."""
    name = node.kernel_name
    if not namespace(node).exists():
        _ip("netns", "add", name)
    if not link_exists(node.veth):
        _ip("link", "add", node.veth, "type", "veth", "peer", "name", "eth0", "netns", name)
    _ip("link", "set", node.veth, "master", node.cluster.bridge, "up")
    _ip("-n", name, "link", "set", "lo", "up")
    _ip("-n", name, "addr", "replace", f"{node.address}/24", "dev", "eth0")
    _ip("-n", name, "link", "set", "eth0", "up")
    _ip("-n", name, "route", "replace", "default", "via", node.cluster.api_address)
    _ip("route", "replace", node.pod_subnet, "via", node.address)


def set_cable(node: NodeLayout, up: bool) -> None:
    """Cut or heal the node's cable."""
    _ip("link", "set", node.veth, "up" if up else "down")


def remove_node(node: NodeLayout) -> None:
    """The cable and the namespace; the route goes with the cable."""
    if link_exists(node.veth):
        _ip("link", "del", node.veth)
    if namespace(node).exists():
        _ip("netns", "del", node.kernel_name)


def namespace(node: NodeLayout) -> Path:
    """The handle that nsenter takes."""
    return _NAMESPACES / node.kernel_name


def namespaces_mounted() -> bool:
    """`ip netns add` binds its folder onto itself the first time."""
    # Not Path.is_mount(): that overlooks a bind within one filesystem.
    return any(line.split(" ")[4] == str(_NAMESPACES) for line in _MOUNTS.read_text().splitlines())


def unmount_namespaces() -> None:
    """Undo that, unless somebody has namespaces there by now."""
    if namespaces_mounted() and not any(_NAMESPACES.iterdir()):
        run(["umount", _NAMESPACES], timeout=_DEADLINE_SECONDS)


def link_exists(name: str) -> bool:
    """This machine has an interface of that name."""
    return Path("/sys/class/net", name).exists()


def other_clusters(cluster: Layout) -> bool:
    """Nodes of another instance live on this machine."""
    own = {node.kernel_name for node in cluster.nodes()}
    return any(path.name not in own for path in _NAMESPACES.glob("cinderblock*-node*"))


def _rules(cluster: Layout) -> tuple[tuple[str, ...], ...]:
    return tuple((side, cluster.bridge, "-j", "ACCEPT") for side in ("-i", "-o"))


def _has_rule(rule: tuple[str, ...]) -> bool:
    listed = run(["iptables", "-w", "-S", "FORWARD"], timeout=_DEADLINE_SECONDS, check=False)
    return f"-A FORWARD {' '.join(rule)}" in listed.splitlines()


def _ip(*arguments: str) -> str:
    return run(["ip", *arguments], timeout=_DEADLINE_SECONDS)
