"""A broker inside one program, without a server, port or socket. Run it: python examples/embedded.py

Two parts of the program exchange messages by topics. With server.bind_addr the same broker also serves other programs.
"""

import asyncio

import blipmq


async def watch(broker: blipmq.Broker, watching: asyncio.Event) -> None:
    """Print the readings of all sensors, until one of them is `off`."""
    async with broker.connect() as client, client.subscribe("site/+/temp") as readings:
        watching.set()
        async for message in readings:
            print(f"{message.topic}: {message.text}")
            if message.text == "off":
                break


async def main() -> None:
    async with blipmq.Broker({"server": {"bind_addr": ""}}) as broker:
        watching = asyncio.Event()
        watcher = asyncio.create_task(watch(broker, watching))
        await watching.wait()
        for reading in ("20.9", "21.5", "off"):
            broker.publish("site/cellar/temp", reading)
        await watcher
        counters = await broker.stats()
        print(f"delivered: {counters['delivered']}")


if __name__ == "__main__":
    asyncio.run(main())
