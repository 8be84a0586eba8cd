"""`python -m bench`, and `beside`, `mqtt`, `tls` and `websocket` behind it."""

import sys

from bench import beside, tls_peers, websocket
from bench.run import main, mqtt

OTHERS = {"beside": beside.main, "mqtt": mqtt, "tls": tls_peers.main, "websocket": websocket.main}

sys.exit(OTHERS[sys.argv[1]](sys.argv[2:]) if sys.argv[1:2] and sys.argv[1] in OTHERS else main())
