"""`make bench`: the figures of docs/performance.md, measured on this machine in one run.

A benchmark and no test: it ends with 0 whatever it measured, and with 1 only where it could not measure.
"""
