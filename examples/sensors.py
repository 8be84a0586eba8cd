"""Many sensors, and subscribers with different filters. Start a broker, then: python examples/sensors.py [HOST:PORT]

An old reading is useless, so each has a time to live: a display that was away gets only recent readings. Each subscriber
chooses its readings by a filter. The sensors need not know the subscribers.
"""

import asyncio
import sys

import blipmq
from blipmq.client.client import Subscription

READINGS = [("cellar/temp", 12.5), ("attic/temp", 31.0), ("attic/humidity", 40.0), ("cellar/temp", 12.0)]
TOO_WARM = 30.0


async def display(readings: Subscription) -> None:
    """Show the readings of all sensors."""
    for _ in READINGS:
        reading = await readings.next(timeout_s=5)
        print(f"display: {reading.topic} {reading.text}")


async def alarm(temperatures: Subscription) -> None:
    """Read temperatures until one is too high."""
    async for reading in temperatures:
        if float(reading.text) > TOO_WARM:
            print(f"alarm: {reading.topic} is at {reading.text}")
            return


async def main(address: str) -> None:
    async with blipmq.connect(address) as client:
        async with client.subscribe("home/#") as everything, client.subscribe("home/+/temp") as temperatures:
            for sensor, value in READINGS:
                await client.publish(f"home/{sensor}", f"{value}", ttl_ms=10_000)
            await display(everything)
            await alarm(temperatures)


if __name__ == "__main__":
    try:
        asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7878"))
    except blipmq.errors.BlipMQError as error:
        sys.exit(f"{error}")
