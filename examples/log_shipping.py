"""Collect log lines from many machines in one file, without losing any.

    python examples/log_shipping.py collect FILE [HOST:PORT]      on the collecting machine; Ctrl-C ends it
    some-program | python examples/log_shipping.py ship [HOST:PORT]   on each of the others

Each line is on the broker's disk before the next batch is read, and waits there while the collector is away. The collector
acknowledges a line after it is on the collector's own disk. After a crash a line may therefore be written twice; none is lost.
"""

import asyncio
import contextlib
import os
import sys
from itertools import islice
from typing import TextIO

import blipmq

BATCH_LINES = 100


async def ship(address: str) -> None:
    topic = f"logs/{os.uname().nodename}"
    async with blipmq.connect(address) as client:
        while lines := [line.rstrip("\n") for line in islice(sys.stdin, BATCH_LINES)]:
            await asyncio.gather(*(client.publish(topic, line, qos=1) for line in lines))
            print(f"-- {len(lines)} lines are safe", file=sys.stderr)


async def collect(file: TextIO, address: str) -> None:
    async with (
        blipmq.connect(address, client_id="log-collector") as client,
        client.subscribe("logs/#", qos=1, durable=True) as lines,
    ):
        print("-- collecting", file=sys.stderr, flush=True)
        while batch := await lines.batch():
            file.writelines(f"{line.topic.removeprefix('logs/')} {line.text}\n" for line in batch)
            file.flush()
            os.fsync(file.fileno())
            for line in batch:
                client.ack(line)


if __name__ == "__main__":
    role, *rest = sys.argv[1:] or [""]
    files = rest[:1] if role == "collect" else []
    address = rest[len(files)] if len(rest) > len(files) else "127.0.0.1:7878"
    try:
        with contextlib.suppress(KeyboardInterrupt):
            if role == "collect" and files:
                with open(files[0], "a", encoding="utf-8") as file:
                    asyncio.run(collect(file, address))
            elif role == "ship":
                asyncio.run(ship(address))
            else:
                sys.exit(f"{__doc__}")
    except blipmq.errors.BlipMQError as error:
        sys.exit(f"{error}")
