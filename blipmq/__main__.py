"""`python -m blipmq` and the `blipmq` command. Invariant: only the arguments decide which modules are imported."""

from __future__ import annotations

import sys

from blipmq.cli.server import main

if __name__ == "__main__":
    sys.exit(main())
