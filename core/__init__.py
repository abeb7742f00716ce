"""The kernel: kinds, errors, units, names, the Kubernetes port and the process runner. Imports nothing else of ours."""
