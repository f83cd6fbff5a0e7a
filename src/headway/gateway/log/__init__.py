"""The decision log: every event that the brain was told of and every decision, in order, as files.

`form.py` says what a row is, `writer.py` writes beside the decisions, `reader.py` reads back, `replay.py` lets a new
brain decide again, `traffic.py` makes a workload and a measured result of it.
"""
