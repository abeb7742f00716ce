"""The node's side: what is connected, staged and published here, always read from the kernel and the CRs."""
