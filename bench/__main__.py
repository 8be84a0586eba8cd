"""`python -m bench`, `python -m bench beside` and `python -m bench tls`."""

import sys

from bench import beside, tls_peers
from bench.run import main

OTHERS = {"beside": beside.main, "tls": tls_peers.main}

sys.exit(OTHERS[sys.argv[1]](sys.argv[2:]) if sys.argv[1:2] and sys.argv[1] in OTHERS else main())
