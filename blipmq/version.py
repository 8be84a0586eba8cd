"""The version of BlipMQ. Invariant: this is the only place it is written; packaging and `blipmq version` read it
here."""

__version__ = "2.0.0.dev0"
