"""The appliance around the broker: its settings, its status, its health. The code of `blipmq-device` on an image.

Invariant: the broker and its client import nothing from here. Every path is below a root that the caller gives.
"""
