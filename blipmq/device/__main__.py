"""`python -m blipmq.device`. Invariant: only the arguments decide which modules are imported."""

from __future__ import annotations

import sys

from blipmq.device.commands import main

if __name__ == "__main__":
    sys.exit(main())
