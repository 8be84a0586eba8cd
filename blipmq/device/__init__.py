"""The appliance around the broker: its settings, its status, its health. What `blipmq-device` does on an image.

Invariant: nothing here is imported by the broker or its client, and every path is below a root that the caller names.
"""
