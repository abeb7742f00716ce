"""The configuration files of a node's programs, as text: pure, so that tests can read them."""

import json
from pathlib import Path

import yaml

from tools.cluster.layout import CLUSTER_DNS, CNI_PLUGINS, PAUSE_IMAGE, NodeLayout


def containerd_toml(node: NodeLayout) -> str:
    """containerd 2: the sandbox image must be pinned and imported, or every pod hangs on a pull."""
    return f"""version = 3
root = "{node.folder}/containerd"
state = "/run/containerd"
[grpc]
  address = "{node.containerd_socket}"
[plugins.'io.containerd.cri.v1.images']
  snapshotter = "overlayfs"
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = "{PAUSE_IMAGE}"
[plugins.'io.containerd.cri.v1.runtime']
  # without CAP_SYS_RESOURCE a lower score than our own cannot be set
  restrict_oom_score_adj = true
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ["{CNI_PLUGINS}"]
    conf_dir = "{node.folder}/cni"
"""


def cni_conflist(node: NodeLayout) -> str:
    """ptp, not bridge: every packet is routed, so services answer without bridge netfilter."""
    ptp = {
        "type": "ptp",
        "ipMasq": False,
        "ipam": {
            "type": "host-local",
            "dataDir": "/run/cni",  # private to the node and gone at its death, as at a reboot
            "ranges": [[{"subnet": node.pod_subnet}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    return json.dumps({"cniVersion": "1.0.0", "name": "cinderblock-dev", "plugins": [ptp, ports]}, indent=1)


def kubelet_yaml(node: NodeLayout, pki: Path) -> str:
    """Evictions and image clean-up are off: the disk is this machine's, and images cannot be pulled again."""
    config = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "failCgroupV1": False,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{node.kernel_name}",
        "failSwapOn": False,
        "address": node.address,
        "healthzBindAddress": "127.0.0.1",
        "authentication": {
            "x509": {"clientCAFile": str(pki / "ca.crt")},
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(pki / f"{node.name}.crt"),
        "tlsPrivateKeyFile": str(pki / f"{node.name}.key"),
        "containerRuntimeEndpoint": f"unix://{node.containerd_socket}",
        "clusterDNS": [CLUSTER_DNS],
        "clusterDomain": "cluster.local",
        "resolvConf": str(node.folder / "resolv.conf"),
        "volumePluginDir": str(node.folder / "flex"),
        "nodeStatusUpdateFrequency": "4s",
        "nodeLeaseDurationSeconds": 8,
        "imageGCHighThresholdPercent": 100,
        "registryPullQPS": 0,
        "eventRecordQPS": 0,
        "maxPods": 110,
        # Who kills containers on purpose, again and again, wants to see them come back and not the kubelet's patience.
        "crashLoopBackOff": {"maxContainerRestartPeriod": "5s"},
        "evictionHard": {
            "nodefs.available": "1Mi",
            "imagefs.available": "1Mi",
            "memory.available": "50Mi",
        },
    }
    return yaml.safe_dump(config, sort_keys=False)
