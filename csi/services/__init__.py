"""RPC services: validate, gate on what is advertised, call, answer."""
