"""`make demo`: from a bare machine to a pod whose data outlives it, shown step by step and proved."""
