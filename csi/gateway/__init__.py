"""The CSI controller's way to the custom resources: create or verify, wait, delete."""
