"""`python -m bench`, `python -m bench beside`, `python -m bench tls` and `python -m bench websocket`."""

import sys

from bench import beside, tls_peers, websocket
from bench.run import main

OTHERS = {"beside": beside.main, "tls": tls_peers.main, "websocket": websocket.main}

sys.exit(OTHERS[sys.argv[1]](sys.argv[2:]) if sys.argv[1:2] and sys.argv[1] in OTHERS else main())
