"""A file of one's own that says what differs around a GPU of the catalogue."""

from pathlib import Path

SLOW = str(Path(__file__).parents[1] / "examples" / "a100-25gbit.yaml")  # between nodes of eight

AROUND = """
sources:
  ours: {kind: measured, source: our own cluster}
gpus:
  a100-of-ours:
    like: a100-80gb-sxm
    figures:
      gpus_per_node: {value: 4, source: ours}
      rdma_bytes_per_s: {value: 3.1e9, source: ours, note: 25 Gbit/s}
"""
