"""Names and places: one folder holds a cluster's whole state, and every name we give the kernel stands here.

`down` needs no memory of what `up` did: it can find everything by these names. Clusters with different
instance numbers live side by side on one machine.
"""

from dataclasses import dataclass
from pathlib import Path

from tools.shell import ToolError

API_PORT = 6443
SERVICE_CIDR = "10.96.0.0/16"
SERVICE_FIRST = "10.96.0.1"
CLUSTER_DNS = "10.96.0.10"  # nothing answers there: the local cluster has no DNS of its own
PAUSE_IMAGE = "registry.k8s.io/pause:3.10.2"
CNI_PLUGINS = Path("/usr/lib/cni")
NODE_COUNT_MAX = 2
INSTANCE_MAX = 9

_SOCKET_PATH_MAX = 107  # bytes, from sockaddr_un
_LONGEST_SOCKET = "node1/kubelet/plugins_registry/csi.cinderblock.io-reg.sock"


@dataclass(frozen=True)
class NodeLayout:
    """One node's folder, addresses and kernel names."""

    state: Path
    instance: int
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
        return f"cinderblock{self.instance}-{self.name}"

    @property
    def veth(self) -> str:
        """This machine's end of the node's cable."""
        return f"cbk{self.instance}n{self.number}"

    @property
    def address(self) -> str:
        """On the bridge."""
        return f"10.{211 + self.instance}.0.{10 + self.number}"

    @property
    def cluster(self) -> "Layout":
        """Whose node it is."""
        return Layout(self.state, self.instance)

    @property
    def pod_subnet(self) -> str:
        """Addresses of its pods."""
        return f"10.{244 + self.instance}.{self.number}.0/24"

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
    """The state folder of a cluster, and its part of the machine's names and addresses."""

    state: Path
    instance: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.instance <= INSTANCE_MAX:
            raise ToolError(f"instances are numbered 0 to {INSTANCE_MAX}")
        longest = len(str(self.state / _LONGEST_SOCKET).encode())
        if longest > _SOCKET_PATH_MAX:
            room = len(str(self.state).encode()) - (longest - _SOCKET_PATH_MAX)
            raise ToolError(
                f"the state folder's path is too long for Unix sockets: {self.state}; "
                f"set CINDERBLOCK_STATE to one of at most {room} bytes"
            )

    @property
    def bridge(self) -> str:
        """Nodes and the API server meet on it; interface names end at 15 characters."""
        return f"cbk{self.instance}"

    @property
    def subnet(self) -> str:
        """Of the bridge."""
        return f"10.{211 + self.instance}.0.0/24"

    @property
    def api_address(self) -> str:
        """The bridge's own."""
        return f"10.{211 + self.instance}.0.1"

    @property
    def pod_cidr(self) -> str:
        """All pods of this cluster."""
        return f"10.{244 + self.instance}.0.0/16"

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

    def node(self, number: int) -> NodeLayout:
        """Node 1 or 2."""
        if not 1 <= number <= NODE_COUNT_MAX:
            raise ToolError(f"nodes are numbered 1 to {NODE_COUNT_MAX}")
        return NodeLayout(self.state, self.instance, number)

    def nodes(self) -> list[NodeLayout]:
        """Every node that may exist."""
        return [self.node(number) for number in range(1, NODE_COUNT_MAX + 1)]
