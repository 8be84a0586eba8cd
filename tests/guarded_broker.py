"""`blipmq`, but its core asks every connection for HELLO and admits whoever says it: what authentication does to strangers,
for tests of the door that have no use for keys.

    [sys.executable, guarded_broker.py, start, --config, FILE]
"""

import sys

from blipmq import broker
from blipmq.cli.server import main

if __name__ == "__main__":
    unguarded = broker.core_config
    broker.core_config = lambda config: unguarded(config)._replace(require_hello=1)
    sys.exit(main())
