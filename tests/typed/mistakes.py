"""A user's program full of mistakes: mypy --strict finds each line that says so, and no other."""

import blipmq


async def mistakes() -> None:
    client = await blipmq.conect()  # a mistake
    other = await blipmq.connect(port=7878)  # a mistake
    await other.publish("a", 21.5)  # a mistake
    await other.publish("a", "21.5", qos="1")  # a mistake
    text: str = await other.publish("a", "21.5")  # a mistake
    async for message in other.subscribe("a"):  # a mistake
        print(message, client, text)
    async with other.subscribe("a") as messages:
        async for message in messages:
            print(message.pay_load)  # a mistake


def more_mistakes() -> None:
    with blipmq.connect_blocking() as client:
        client.publsh("a", "x")  # a mistake
        for message in client.subscribe("a", durable="yes"):  # a mistake
            print(message.text + 1)  # a mistake
    with blipmq.Broker(7878) as broker:  # a mistake
        broker.publish("a", None)  # a mistake
        broker.connect(clientid="a")  # a mistake
    raise blipmq.errors.NoSuchError  # a mistake
