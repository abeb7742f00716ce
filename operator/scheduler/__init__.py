"""Placement: which pools can take a volume, in which order, and why the others cannot. Pure."""
