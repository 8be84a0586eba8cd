"""A broker that does not sync its WAL: the control run of the storm, which must lose data.

Invariant: its configuration differs from the real one in one field only.
"""

from blipmq.__main__ import main
from blipmq.native.config import WalConfig

synced = WalConfig.of
WalConfig.of = lambda config: synced(config)._replace(no_sync=1)
main()
