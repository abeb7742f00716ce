"""The Kubernetes port, its adapter for a real API server, and the typed store that watches feed."""
