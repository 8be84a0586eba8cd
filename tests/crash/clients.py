"""The load: publishers with windows of unanswered publishes, and several kinds of subscribers, in one event loop.

Invariant: frames are encoded and decoded by hand (hand_client). A client reconnects during the whole storm. A publish
without an answer is not sent again, so every duplicate comes from the broker.
"""

import asyncio
import struct

from hand_client import ACK, HELLO, MESSAGE, PUB, SUB, SUBACK, Reader, command, decode

from crash.ledger import SIZE_MIN

RETRY_SECONDS = 0.02
MARK = 0x1122334455667788
ACK_FRAME = command(ACK, seq=MARK)
ACK_AT = ACK_FRAME.index(struct.pack("<Q", MARK))


def ack_frame(id_):
    return ACK_FRAME[:ACK_AT] + struct.pack("<Q", id_) + ACK_FRAME[ACK_AT + 8 :]


class Link(asyncio.Protocol):
    """One connection: receives whole frames; `closed` is set at its end."""

    def __init__(self, on_frame):
        self.on_frame = on_frame
        self.held = b""
        self.closed = asyncio.Event()

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        data = self.held + data
        at = 0
        while at + 4 <= len(data):
            size = int.from_bytes(data[at : at + 4], "big")
            if at + 4 + size > len(data):
                break
            self.on_frame(data[at + 4 : at + 4 + size])
            at += 4 + size
        self.held = data[at:]

    def connection_lost(self, _error):
        self.closed.set()

    def send(self, data):
        if not self.transport.is_closing():
            self.transport.write(data)


class Client:
    """Connects, sends HELLO, stays until the connection ends, and reconnects."""

    answer_seconds = 30  # a later answer is an error of the broker

    def __init__(self, storm, client_id):
        self.storm, self.client_id = storm, client_id
        self.link = None
        self.answers = {}  # seq: future
        self.seq = 0

    @property
    def is_open(self):
        return self.link is not None and not self.link.closed.is_set()

    async def connect(self):
        """True if the broker accepted the connection."""
        loop = asyncio.get_running_loop()
        try:
            _, self.link = await loop.create_connection(lambda: Link(self.frame), self.storm.host, self.storm.port)
        except OSError:
            self.link = None
            return False
        return await self.ask(HELLO, client_id=self.client_id, protocol=1) is not None

    async def ask(self, action, *args, **fields):
        """Send a request. Returns its answer, or None if the connection ended first."""
        self.seq += 1
        answer = self.answers[self.seq] = asyncio.get_running_loop().create_future()
        self.link.send(command(action, *args, seq=self.seq, **fields))
        closed = asyncio.ensure_future(self.link.closed.wait())
        done, _ = await asyncio.wait((answer, closed), timeout=self.answer_seconds, return_when=asyncio.FIRST_COMPLETED)
        closed.cancel()
        if not done:
            self.storm.ledger.fault(f"{self.client_id} was not answered in {self.answer_seconds} s")
        self.answers.pop(self.seq, None)
        return answer.result() if answer.done() else None

    def frame(self, body):
        if body[0] != MESSAGE:
            answer = decode(body)
            waiting = self.answers.get(answer.seq)
            if waiting is not None and not waiting.done():
                waiting.set_result(answer)
            else:
                self.reply(answer)

    def reply(self, answer):
        """An answer to a request without a waiting caller."""

    def leave(self):
        if self.is_open:
            self.link.transport.abort()

    async def run(self):
        while not self.storm.over:
            if await self.connect():
                await self.stay()
            self.leave()
            await asyncio.sleep(self.pause())

    def pause(self):
        return RETRY_SECONDS


class Publisher(Client):
    def __init__(self, storm, number, topics, window):
        super().__init__(storm, f"publisher-{number}")
        self.number, self.topics, self.window = number, topics, window
        self.outstanding = {}

    async def stay(self):
        self.outstanding = {}
        dice, ledger = self.storm.dice, self.storm.ledger
        bytes_max = self.storm.bytes_max  # the limit of the broker for this connection
        while self.is_open and not self.storm.publishing_over:
            burst = []
            ledger.segment = self.storm.newest_segment()
            for _ in range(min(dice.randint(1, self.window), self.window - len(self.outstanding))):
                topic = dice.choice(self.topics)
                number, payload = ledger.send(self.number, topic, self.size(bytes_max))
                self.seq += 1
                self.outstanding[self.seq] = (topic, number)
                ttl_ms = ledger.ttl_ms.get(topic, 0)
                burst.append(command(PUB, ledger.topics[topic], payload, qos=1, seq=self.seq, ttl_ms=ttl_ms))
            self.link.send(b"".join(burst))
            await asyncio.sleep(self.storm.pace * dice.random())
        if not self.storm.over:
            await self.link.closed.wait()

    def size(self, bytes_max):
        """Size of the next payload in bytes: mostly small, up to the limit."""
        dice = self.storm.dice
        kind = dice.random()
        most = bytes_max if kind < self.storm.large_share else 4096 if kind < 0.1 else 430
        return bytes_max if kind < 0.002 else dice.randint(SIZE_MIN, min(most, bytes_max))

    def reply(self, answer):
        sent = self.outstanding.pop(answer.seq, None)
        if sent is None:
            self.storm.ledger.fault(f"{self.client_id} got an answer to nothing: {answer}")
        elif answer.code == 0:
            self.storm.ledger.acknowledge(self.number, *sent, answer.id)
        elif answer.code == 503:
            self.storm.ledger.refused += 1
        else:
            self.storm.ledger.fault(f"{self.client_id} was refused: {answer}")


class Subscriber(Client):
    """Behaviour: `ack_seconds` per acknowledgement (None: it never acknowledges); `away_seconds` maximum absence after
    each connection; `leaves_after` maximum messages before it disconnects; `absent`: it connects only when the storm
    allows it."""

    def __init__(self, storm, view, filter_, client_id=None, group=None, ack_seconds=0.0, away_seconds=0.0, leaves_after=0,
                 absent=False, durable=True):  # fmt: skip
        super().__init__(storm, client_id or view.name)
        self.durable = durable
        self.view, self.filter, self.group = view, filter_, group
        self.ack_seconds, self.away_seconds, self.leaves_after, self.absent = (
            ack_seconds, away_seconds, leaves_after, absent,
        )  # fmt: skip
        self.subscribed = asyncio.Event()
        self.to_ack = []

    def pause(self):
        away = 0 if self.storm.publishing_over else self.away_seconds * self.storm.dice.random()
        return RETRY_SECONDS + away

    async def stay(self):
        self.to_ack = []
        self.left = self.storm.dice.randint(1, self.leaves_after) if self.leaves_after else -1
        while self.absent and self.subscribed.is_set() and not self.storm.absent_may_come:
            self.leave()
            await asyncio.sleep(RETRY_SECONDS)
            return
        self.view.connects_since_crash += 1
        self.view.asks()
        answer = await self.ask(SUB, self.filter, qos=1, durable=self.durable, group=self.group)
        if answer is None or answer.code == 503:
            return
        if answer.code:
            self.storm.ledger.fault(f"{self.client_id} could not subscribe: {answer}")
        self.subscribed.set()
        while self.is_open and not self.storm.over and not self.due_to_leave():
            if self.to_ack:
                self.link.send(ack_frame(self.to_ack.pop(0)))
                await asyncio.sleep(0 if self.storm.publishing_over else self.ack_seconds)
            else:
                await asyncio.sleep(RETRY_SECONDS / 4)

    def due_to_leave(self):
        return self.absent and not self.storm.absent_may_come

    def leave(self):
        self.view.left()
        super().leave()

    def frame(self, body):
        if body[0] == SUBACK and self.durable and decode(body).code == 0:
            self.view.begin()  # at once: messages may follow in the same segment
        if body[0] != MESSAGE:
            return super().frame(body)
        message = Reader(memoryview(body)[1:])
        id_ = message.number(0, "<Q")
        self.view.deliver(message.string(4), message.vector(1), id_, bool(message.number(6, "<B")))
        if self.ack_seconds is None:
            return
        if self.ack_seconds:
            self.to_ack.append(id_)
        else:
            self.link.send(ack_frame(id_))
        if not self.storm.publishing_over:
            self.left -= 1
            if self.left == 0:
                self.leave()
