"""One program under three names: the client as blipmq-cli, the appliance as blipmq-device, the broker under any other name."""

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
