"""What is measured: `measures.py` has every counter and histogram, `worker_gauges.py` what a worker says of itself."""
