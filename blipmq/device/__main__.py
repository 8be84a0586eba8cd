"""`python -m blipmq.device`. Invariant: nothing but the arguments decides what is imported."""

from __future__ import annotations

import sys

from blipmq.device.commands import main

if __name__ == "__main__":
    sys.exit(main())
