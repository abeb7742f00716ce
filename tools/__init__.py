"""Everything around the product: pinned tools, the local cluster, generated stubs, the demo."""
