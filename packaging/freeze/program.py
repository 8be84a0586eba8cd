"""One program with three names: blipmq-cli is the client, blipmq-device the appliance, any other name the broker."""

import os
import sys


def main() -> int | None:
    name = os.path.basename(sys.argv[0])
    if name.startswith("blipmq-cli"):
        from blipmq.cli.client import main as chosen
    elif name.startswith("blipmq-device"):
        from blipmq.device.commands import main as chosen
    else:
        from blipmq.__main__ import main as chosen
    return chosen()


sys.exit(main())
