"""Side-by-side measurements: `make bench`, or `python -m bench NAME ...` for parts of it. Results are in bench/RESULTS.md."""
