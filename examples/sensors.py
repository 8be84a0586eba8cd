"""Readings of many sensors, and who wants which. Start a broker, then: python examples/sensors.py [HOST:PORT]

A reading is worth nothing when it is old, so it has a time to live: a display that was away sees the present, not the
past. Each reader picks what it wants by a filter; the sensors know of none of them.
"""

import asyncio
import sys

import blipmq
from blipmq.client.client import Subscription

READINGS = [("cellar/temp", 12.5), ("attic/temp", 31.0), ("attic/humidity", 40.0), ("cellar/temp", 12.0)]
TOO_WARM = 30.0


async def display(readings: Subscription) -> None:
    """Shows whatever comes from anywhere."""
    for _ in READINGS:
        reading = await readings.next(timeout_s=5)
        print(f"display: {reading.topic} {reading.text}")


async def alarm(temperatures: Subscription) -> None:
    """Looks at temperatures alone, until one is too high."""
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
