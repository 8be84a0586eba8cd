"""`copyright.py CACHE TARGET FOLDER`: the Debian package's copyright file, and THIRD-PARTY.txt.gz with all licences in full."""

import gzip
import sys
from pathlib import Path

from components import components, notices, table

TOP = Path(__file__).resolve().parent.parent.parent
POINTER = """
Their copyright notices and licences stand in full in THIRD-PARTY.txt.gz beside this file. On Debian systems the texts of
the Apache License 2.0, the GPL and the LGPL are also in /usr/share/common-licenses.
"""

if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    cache, target, folder = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    parts = components(cache, target)
    (folder / "copyright").write_text(f"BlipMQ\n\n{(TOP / 'LICENSE').read_text()}\n\n{table(parts)}{POINTER}")
    with gzip.GzipFile(folder / "THIRD-PARTY.txt.gz", "wb", mtime=0) as file:
        file.write(notices(parts).encode())
