"""The leader: places volumes, judges Backends, watches over hosts and nodes, and serves objects without an owner."""
