"""Benchmarks of BlipMQ, other brokers, and a relay that only copies bytes: `python -m bench`."""
