"""Backend drivers and their contract. A driver knows its storage, and neither Kubernetes, gRPC nor kopf."""
