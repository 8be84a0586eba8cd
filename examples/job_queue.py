"""Jobs shared by workers. Each job is done at least once; a job that always fails becomes a dead letter.

Start a broker with few deliveries and a short timeout, so that the dead letter comes soon:
    BLIPMQ_QOS1__ACK_TIMEOUT_MS=200 BLIPMQ_QOS1__MAX_DELIVERIES=3 blipmq start
then: python examples/job_queue.py [HOST:PORT]

A worker acknowledges a job when it is done (`auto_ack=False`, then `jobs.ack`). A job without an acknowledgement comes
again, to the same worker or to another member of its group. A job can therefore come twice: give each job an id, and make
a second run of it harmless.
"""

import asyncio
import sys

import blipmq

JOBS = ["mail to Ann", "mail to Bob", "mail to nobody", "mail to Eve"]


async def worker(address: str, name: str, ready: asyncio.Queue[None]) -> None:
    async with (
        blipmq.connect(address) as client,
        client.subscribe("jobs/mail", qos=1, group="mailers", auto_ack=False) as jobs,
    ):
        ready.put_nowait(None)
        async for job in jobs:
            if job.text == "mail to nobody":
                print(f"{name}: cannot do {job.text!r}{', again' if job.redelivered else ''}", flush=True)
                continue  # not acknowledged
            print(f"{name}: {job.text}", flush=True)
            jobs.ack(job)


async def main(address: str) -> None:
    ready: asyncio.Queue[None] = asyncio.Queue()
    async with blipmq.connect(address) as client, client.subscribe("$dlq/jobs/#", qos=1) as dead_letters:
        workers = [asyncio.create_task(worker(address, f"worker {number}", ready)) for number in (1, 2)]
        for _ in workers:
            await asyncio.wait_for(ready.get(), 5)
        for job in JOBS:
            await client.publish("jobs/mail", job, qos=1)  # returns when the job is on the broker's disk
        letter = await dead_letters.next(timeout_s=60)
        about = letter.headers
        print(f"given up after {about['deliveries']} deliveries: {about['topic']}, id {about['id']}: {letter.text}")
    for task in workers:
        task.cancel()
    await asyncio.gather(*workers, return_exceptions=True)


if __name__ == "__main__":
    try:
        asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7878"))
    except blipmq.errors.BlipMQError as error:
        sys.exit(f"{error}")
