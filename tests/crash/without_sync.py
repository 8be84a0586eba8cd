"""A broker that does not sync its log: the control run of the storm, which must lose data.

Invariant: all but one field of its configuration is the real broker's.
"""

from blipmq import wal
from blipmq.__main__ import main

synced = wal.log_config
wal.log_config = lambda config: synced(config)._replace(no_sync=1)
main()
