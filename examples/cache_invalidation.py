"""Two programs with a cache each, in front of one database. Start a broker, then:
python examples/cache_invalidation.py [HOST:PORT]

A program that changes a row publishes its key. All programs remove the row from their caches and read it again when they next
need it. A program misses messages while it is not connected, so it empties its cache after a disconnection.
"""

import asyncio
import sys

import blipmq
from blipmq.client.client import Subscription

DATABASE = {"user/1": "Ann", "user/2": "Bob"}


class Cache:
    """The rows that one program has read."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.rows: dict[str, str] = {}

    def read(self, key: str) -> str:
        if key not in self.rows:
            print(f"{self.name}: reads {key} from the database")
            self.rows[key] = DATABASE[key]
        return self.rows[key]

    def on_state(self, state: str, error: blipmq.errors.BlipMQError | None) -> None:
        self.rows.clear()  # connected or disconnected: messages may have been missed

    async def follow(self, changes: Subscription) -> None:
        """Wait for the next change and remove its row."""
        change = await changes.next(timeout_s=5)
        self.rows.pop(change.topic.removeprefix("changed/"), None)


async def main(address: str) -> None:
    here, there = Cache("here"), Cache("there")
    async with (
        blipmq.connect(address, on_state=here.on_state) as one,
        blipmq.connect(address, on_state=there.on_state) as two,
        one.subscribe("changed/#") as heard_here,
        two.subscribe("changed/#") as heard_there,
    ):
        for cache in (here, there):
            print(f"{cache.name}: {cache.read('user/1')}, {cache.read('user/2')}")
        DATABASE["user/2"] = "Eve"
        await one.publish("changed/user/2", "")
        await asyncio.gather(here.follow(heard_here), there.follow(heard_there))
        for cache in (here, there):
            print(f"{cache.name}: {cache.read('user/1')}, {cache.read('user/2')}")


if __name__ == "__main__":
    try:
        asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7878"))
    except blipmq.errors.BlipMQError as error:
        sys.exit(f"{error}")
