"""One file a workload: its data, product, candidates, check, targets and place in the report (see workload.py)."""
