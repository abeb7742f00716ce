"""The CSI driver: controller and node services, both clients of the custom resources."""
