"""What the simulator costs and how close it comes, measured: run with `python -m bench.NAME` from the checkout."""
