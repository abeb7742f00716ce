"""Connectors: how a node brings up the device of a connection, one module per protocol."""
