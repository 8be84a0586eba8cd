"""Run before the program in every frozen binary: the one-file download removes its folder on an orderly exit.

The launcher (packaging/launcher/launcher.c) passes the unpacked folder in an environment variable, and the descriptor that holds
the folder's lock. Invariant: a folder is removed only if this program runs from it and holds that lock.
"""

import atexit
import os
import sys


def remove(folder: str) -> None:
    for path, folders, files in os.walk(folder, topdown=False):
        for name in files:
            os.unlink(os.path.join(path, name))
        for name in folders:
            os.rmdir(os.path.join(path, name))
    os.rmdir(folder)


def adopt(note: str) -> None:
    descriptor, _, folder = note.partition(":")
    try:
        lock = int(descriptor)
        if not os.path.samestat(os.fstat(lock), os.stat(folder)) or os.path.dirname(sys._MEIPASS) != folder:
            return
        # Child programs must not keep the folder locked after the broker has ended.
        os.set_inheritable(lock, False)
    except (OSError, ValueError):
        return
    owner = os.getpid()

    def at_exit() -> None:
        if os.getpid() == owner:
            try:
                remove(folder)
            except OSError:
                # A remaining folder is no longer locked: the next start removes it.
                pass

    atexit.register(at_exit)


note = os.environ.pop("_BLIPMQ_UNPACKED", "")
if note:
    adopt(note)
