"""What every reconciler runs on: queues, stores, writers, leadership, heartbeats."""
