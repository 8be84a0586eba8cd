"""Publish and subscribe without asyncio. Start a broker, then: python examples/basic_blocking.py [HOST:PORT]

The client has no background thread: it receives messages only while a call waits for them.
"""

import sys

import blipmq


def main(address: str) -> None:
    with blipmq.connect_blocking(address) as client, client.subscribe("logs.>") as logs:
        client.publish("logs.web.error", "out of coffee")
        client.publish_many("logs.db.info", ["started", "ready"])
        for count, message in enumerate(logs, start=1):
            print(f"{message.id} {message.topic}: {message.text}")
            if count == 3:
                break
        print(f"-- the broker answers in {client.ping() * 1000:.1f} ms")


if __name__ == "__main__":
    try:
        main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7878")
    except blipmq.errors.BlipMQError as error:
        sys.exit(f"{error}")
