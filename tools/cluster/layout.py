"""Names and places: one folder holds a cluster's whole state, and every name we give the kernel is listed
here.

`down` needs no memory of what `up` did: it can find everything by these names.
"""

from dataclasses import dataclass
from pathlib import Path

from tools.shell import ToolError

BRIDGE = "cbk0"  # interface names end at 15 characters
NODE_NET = "10.211.0"  # nodes and the API server, on the bridge
API_ADDRESS = f"{NODE_NET}.1"
API_PORT = 6443
POD_NET = "10.244"  # nodeN has POD_NET.N.0/24
POD_CIDR = f"{POD_NET}.0.0/16"
SERVICE_CIDR = "10.96.0.0/16"
SERVICE_FIRST = "10.96.0.1"
CLUSTER_DNS = "10.96.0.10"  # nothing answers there: the local cluster has no DNS of its own
PAUSE_IMAGE = "registry.k8s.io/pause:3.10.2"
CNI_PLUGINS = Path("/usr/lib/cni")
NODE_COUNT_MAX = 2

_SOCKET_PATH_MAX = 107  # bytes, from sockaddr_un
_LONGEST_SOCKET = "node1/kubelet/plugins_registry/csi.cinderblock.io-reg.sock"


@dataclass(frozen=True)
class NodeLayout:
    """One node's folder, addresses and kernel names."""

    state: Path
    number: int

    @property
    def name(self) -> str:
        """The Node's name in Kubernetes, and its host name."""
        return f"node{self.number}"

    @property
    def folder(self) -> Path:
        """All that this node keeps."""
        return self.state / self.name

    @property
    def kernel_name(self) -> str:
        """Its network namespace and its cgroup root."""
        return f"cinderblock-{self.name}"

    @property
    def veth(self) -> str:
        """This machine's end of the node's cable."""
        return f"cbk-n{self.number}"

    @property
    def address(self) -> str:
        """On the bridge."""
        return f"{NODE_NET}.{10 + self.number}"

    @property
    def pod_subnet(self) -> str:
        """Addresses of its pods."""
        return f"{POD_NET}.{self.number}.0/24"

    @property
    def containerd_socket(self) -> Path:
        """Reachable from this machine, for loading images."""
        return self.folder / "containerd.sock"

    @property
    def pid_file(self) -> Path:
        """Of the process whose only child is the node's pid 1."""
        return self.folder / "unshare.pid"

    @property
    def log(self) -> Path:
        """What the node's pid 1 says."""
        return self.folder / "init.log"


@dataclass(frozen=True)
class Layout:
    """The state folder of a cluster."""

    state: Path

    def __post_init__(self) -> None:
        longest = len(str(self.state / _LONGEST_SOCKET).encode())
        if longest > _SOCKET_PATH_MAX:
            room = len(str(self.state).encode()) - (longest - _SOCKET_PATH_MAX)
            raise ToolError(
                f"the state folder's path is too long for Unix sockets: {self.state}; "
                f"set CINDERBLOCK_STATE to one of at most {room} bytes"
            )

    @property
    def control(self) -> Path:
        """The control plane's folder."""
        return self.state / "control"

    @property
    def kubeconfig(self) -> Path:
        """For the administrator of this cluster."""
        return self.control / "admin.kubeconfig"

    @property
    def lock(self) -> Path:
        """Held by every command that changes the cluster."""
        return self.state.with_name(f".{self.state.name}.lock")

    @property
    def facts(self) -> Path:
        """What the machine was like before us, to be put back by `down`."""
        return self.state / "machine.json"

    def node(self, number: int) -> NodeLayout:
        """Node 1 or 2."""
        if not 1 <= number <= NODE_COUNT_MAX:
            raise ToolError(f"nodes are numbered 1 to {NODE_COUNT_MAX}")
        return NodeLayout(self.state, number)

    def nodes(self) -> list[NodeLayout]:
        """Every node that may exist."""
        return [self.node(number) for number in range(1, NODE_COUNT_MAX + 1)]
