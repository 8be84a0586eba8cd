"""Stands in for the standard plistlib while freezing: PyInstaller imports it for macOS bundles, which are not made here,
and the trimmed interpreter has no XML. Never part of a binary."""
