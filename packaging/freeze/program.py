"""One program under two names: it is the client where it is called blipmq-cli, and the broker under any other name."""

import os
import sys


def main() -> int | None:
    if os.path.basename(sys.argv[0]).startswith("blipmq-cli"):
        from blipmq.cli.client import main as chosen
    else:
        from blipmq.__main__ import main as chosen
    return chosen()


sys.exit(main())
