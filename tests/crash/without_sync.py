"""A broker that does not sync its log: the control run of the storm, which must lose data.

Invariant: all but one field of its configuration is the real broker's.
"""

from blipmq.__main__ import main
from blipmq.native.config import LogConfig

synced = LogConfig.of
LogConfig.of = lambda config: synced(config)._replace(no_sync=1)
main()
