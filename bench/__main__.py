"""`python -m bench`, and `python -m bench beside`."""

import sys

from bench import beside
from bench.run import main

sys.exit(beside.main(sys.argv[2:]) if sys.argv[1:2] == ["beside"] else main())
