"""The edge to kopf: one file per kind, each of which hands a watch event to that kind's Store. Nothing else."""
