"""Benchmarks: `make bench`, or `python -m bench PART ...`. Results are in bench/RESULTS.md."""
