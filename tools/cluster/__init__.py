"""A real Kubernetes on one machine, from pinned binaries and without an image registry.

Control plane: processes of this machine. Node = containerd, kubelet and kube-proxy in namespaces of their own (net,
mount, pid, uts, ipc), so that a node can be killed like a power cut and leaves no mounts behind.
"""
