"""Benchmarks: `python bench/run.py` times every row, `bench/report.py` draws its table and plots."""
