"""Publish and subscribe with asyncio. Start a broker (`blipmq start`), then: python examples/basic_async.py [HOST:PORT]

The client reconnects and subscribes again automatically. If the program reads slowly, the client stops reading from the
broker, so memory does not grow.
"""

import asyncio
import sys

import blipmq


async def main(address: str) -> None:
    async with blipmq.connect(address, on_state=lambda state, error: print(f"-- {state}")) as client:
        async with client.subscribe("site/+/temp") as readings:
            await client.publish("site/1/temp", "21.5")
            await client.publish("site/2/temp", b"19.0", ttl_ms=60_000)  # dropped if not delivered within a minute
            await client.publish_many("site/3/temp", (f"{degrees}" for degrees in range(3)))
            await client.flush()  # returns when the broker has read all messages; raises if it refused one
            for _ in range(5):
                message = await readings.next(timeout_s=5)
                print(f"{message.topic}: {message.text}")
        info = await client.info()
        print(f"-- BlipMQ {info.get('version')}, {info.get('state')}")


if __name__ == "__main__":
    try:
        asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7878"))
    except blipmq.errors.BlipMQError as error:
        sys.exit(f"{error}")
