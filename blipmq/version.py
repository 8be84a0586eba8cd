"""The version of BlipMQ. Invariant: it is defined only here; packaging and `blipmq version` read it."""

__version__ = "2.0.0.dev0"
