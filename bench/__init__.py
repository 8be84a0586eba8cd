"""Measures BlipMQ beside other brokers and beside a relay that only moves bytes: `python -m bench`."""
