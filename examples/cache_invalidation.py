"""Two programs with a cache each, and a database behind them. Start a broker, then:
python examples/cache_invalidation.py [HOST:PORT]

Whoever changes a row says which; everyone forgets it and reads it anew when it is next wanted. What is said while a
program is not connected it never hears, so a cache that was cut off begins empty.
"""

import asyncio
import sys

import blipmq
from blipmq.client.client import Subscription

DATABASE = {"user/1": "Ann", "user/2": "Bob"}


class Cache:
    """Rows as one program remembers them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.rows: dict[str, str] = {}

    def read(self, key: str) -> str:
        if key not in self.rows:
            print(f"{self.name}: reads {key} from the database")
            self.rows[key] = DATABASE[key]
        return self.rows[key]

    def on_state(self, state: str, error: blipmq.errors.BlipMQError | None) -> None:
        self.rows.clear()  # connected, or cut off: either way something may have been missed

    async def follow(self, changes: Subscription) -> None:
        """Forget the next row that was changed."""
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
