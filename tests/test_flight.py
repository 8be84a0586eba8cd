"""The packet ids of an MQTT session (native/broker/flight.c) against a short model, with random operations."""

from __future__ import annotations

import random
import re
from typing import Any

import c_library
import pytest
from c_library import NATIVE
from cffi import FFI

LOGGING, SENT, RECEIVED, RELEASED = 1, 2, 3, 4
ON_DURABLE, ON_PUBACK, ON_PUBREC, ON_REFUSED, ON_PUBCOMP = range(5)
NOTHING, SEND_PUBLISH, LOG_RECEIVED, SEND_PUBREL, SETTLE, UNKNOWN, WRONG = range(7)
IDS = 65_535

DECLARATIONS = """
typedef struct pool { void *free[52]; uint32_t free_count[52]; uint32_t free_max[52];
    uint64_t used_bytes, free_bytes, peak_bytes, hits, misses; } pool_t;
void pool_init(pool_t *, uint32_t, uint32_t, uint32_t);
void pool_release(pool_t *);
"""


def declarations() -> str:
    text = c_library.declarations(NATIVE / "broker" / "flight.h")
    return DECLARATIONS + re.sub(r"^static inline .*?\}\n", "", text, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> tuple[FFI, Any]:
    sources = [NATIVE / "broker" / "flight.c", NATIVE / "base" / "pool.c"]
    return c_library.load(tmp_path_factory.mktemp("flight"), sources, declarations(), "-std=c11", "-O1", "-DBQ_CHECK")


class Model:
    """The table as a dict in order. `away`: not sent over this connection."""

    def __init__(self, limit: int, logs: bool) -> None:
        self.limit, self.logs = limit, logs
        self.flights: dict[int, dict[str, Any]] = {}
        self.last = 0
        self.order = 0
        self.again: list[int] = []

    def open(self) -> int:
        return sum(not flight["away"] for flight in self.flights.values())

    def room(self) -> bool:
        return not self.again and self.open() < self.limit

    def add(self, lsn: int, qos: int) -> int:
        while True:
            self.last = self.last % IDS + 1
            if self.last not in self.flights:
                break
        self.order += 1
        logging = self.logs and qos == 2
        self.flights[self.last] = {
            "message": lsn, "qos": qos, "state": LOGGING if logging else SENT, "told": not logging, "away": False,
            "order": self.order,
        }  # fmt: skip
        return self.last

    def on(self, id: int, event: int) -> int:
        flight = self.flights.get(id)
        if flight is None:
            return UNKNOWN
        step = self.step(flight, event)
        if event != ON_DURABLE and step not in (WRONG, UNKNOWN):
            flight["away"] = False
        if step == SETTLE:
            del self.flights[id]
        return NOTHING if event == ON_DURABLE and flight["away"] else step

    def step(self, flight: dict[str, Any], event: int) -> int:
        state, qos = flight["state"], flight["qos"]
        if event == ON_DURABLE:
            if state == LOGGING:
                flight["state"] = SENT
                flight["told"] |= not flight["away"]
                return SEND_PUBLISH
            if state == RECEIVED:
                flight["state"] = RELEASED
                return SEND_PUBREL
            return NOTHING
        if state == LOGGING:
            return UNKNOWN
        if qos == 1:
            return SETTLE if event == ON_PUBACK else WRONG
        if event == ON_PUBREC and state == SENT:
            self.order += 1
            flight["order"] = self.order
            flight["state"] = RECEIVED if self.logs else RELEASED
            return LOG_RECEIVED if self.logs else SEND_PUBREL
        if event == ON_PUBREC:
            return SEND_PUBREL if state == RELEASED else NOTHING
        if event == ON_REFUSED:
            return NOTHING if state == RECEIVED else SETTLE
        return SETTLE if event == ON_PUBCOMP and state == RELEASED else WRONG

    def leave(self) -> None:
        self.again = []
        for flight in self.flights.values():
            flight["away"] = True

    def back(self, limit: int) -> None:
        self.limit = limit
        self.again = sorted(self.flights, key=lambda id: self.flights[id]["order"])

    def next_again(self) -> tuple[int, int, bool] | None:
        while self.again:
            flight = self.flights.get(self.again[0])
            if flight is None or not flight["away"]:
                self.again.pop(0)
            elif flight["state"] in (LOGGING, RECEIVED):
                flight["away"] = False
                self.again.pop(0)
            elif flight["state"] == SENT and self.open() >= self.limit:
                return None
            else:
                told, flight["told"], flight["away"] = flight["told"], True, False
                return self.again.pop(0), flight["state"], told
        return None


class Table:
    """The C module, compared with the model after each operation."""

    def __init__(self, module: tuple[FFI, Any], limit: int, logs: bool, start: int = 0) -> None:
        self.ffi, self.lib = module
        self.pool = self.ffi.new("pool_t *")
        self.lib.pool_init(self.pool, 0, 0, 0)
        self.flights = self.ffi.new("flights_t *")
        self.lib.flights_init(self.flights, limit, logs)
        self.model = Model(limit, logs)
        self.model.last = self.flights.last_id = start % IDS
        self.connected = True
        self.seen: set[tuple[int, int, int, bool, int]] = set()

    def check(self) -> None:
        flights, model = self.flights, self.model
        assert (flights.count, flights.open, flights.last_id) == (len(model.flights), model.open(), model.last)
        for id, expected in model.flights.items():
            found = self.lib.flight_find(flights, id)
            assert found and {name: getattr(found, name) for name in ("message", "qos", "state", "told", "away")} == {
                name: value for name, value in expected.items() if name != "order"
            }
        assert flights.count == sum(flights.places[i].id > 0 for i in range(flights.capacity))

    def add(self, lsn: int, qos: int) -> None:
        room = self.connected and self.model.room()
        if not self.connected:
            return
        flight = self.lib.flight_add(self.flights, self.pool, lsn, qos)
        assert bool(flight) == room
        if room:
            assert flight.id == self.model.add(lsn, qos)

    def cancel(self, id: int) -> None:
        self.lib.flight_cancel(self.flights, id)
        if self.model.flights.pop(id, None) and self.model.last == id:
            self.model.last -= 1

    def on(self, id: int, event: int) -> int:
        copy = self.ffi.new("flight_t *")
        before = dict(self.model.flights.get(id, {}))
        step = int(self.lib.flight_on(self.flights, id, event, copy))
        assert step == self.model.on(id, event)
        if before:
            self.seen.add((before["qos"], before["state"], event, before["away"], step))
        if step == SETTLE:
            assert (copy.message, copy.qos) == (before["message"], before["qos"])
        return step

    def leave(self) -> None:
        self.lib.flights_leave(self.flights, self.pool)
        self.model.leave()
        self.connected = False

    def back(self, limit: int) -> None:
        assert self.lib.flights_return(self.flights, self.pool, limit)
        self.model.back(limit)
        self.connected = True

    def again(self) -> bool:
        dup = self.ffi.new("bool *")
        flight = self.lib.flight_again(self.flights, self.pool, dup)
        expected = self.model.next_again()
        assert ((flight.id, flight.state, dup[0]) if flight else None) == expected
        return expected is not None

    def end(self) -> None:
        self.lib.flights_release(self.flights, self.pool)
        assert self.pool.used_bytes == self.pool.free_bytes
        self.lib.pool_release(self.pool)


def step(dice: random.Random, table: Table, lsn: int) -> None:
    ids = list(table.model.flights)
    what = dice.choice(["add"] * 5 + ["on"] * 8 + ["leave", "again", "again"] + ["cancel"] * (lsn % 2))
    if what == "add":
        table.add(lsn, dice.choice([1, 1, 2]))
    elif what == "cancel":
        table.cancel(dice.choice([*ids, table.model.last]))
    elif what == "on":
        id = dice.choice(ids) if ids and dice.random() < 0.95 else dice.randrange(IDS + 1)
        table.on(id, dice.randrange(5) if table.connected else ON_DURABLE)
    elif what == "leave" and table.connected:
        table.leave()
    elif what == "leave":
        table.back(dice.choice([1, 3, 10, 40]))
    elif table.connected:
        table.again()


@pytest.mark.parametrize("logs", [False, True], ids=["of the connection", "durable"])
@pytest.mark.parametrize("seed", range(8))
def test_the_table_agrees_with_the_model(module: tuple[FFI, Any], seed: int, logs: bool) -> None:
    dice = random.Random(seed)
    table = Table(module, dice.choice([1, 5, 30]), logs, start=dice.choice([0, IDS - 20]))
    for lsn in range(1, 10_000):
        step(dice, table, lsn)
        table.check()
    states = {(1, SENT), (2, SENT), (2, RELEASED)} | ({(2, LOGGING), (2, RECEIVED)} if logs else set())
    assert {(qos, state, event) for qos, state, event, _, _ in table.seen} == {
        (qos, state, event) for qos, state in states for event in range(5)
    }
    table.end()


def test_ids_begin_at_1_and_after_65535_again_and_pass_over_those_in_use(module: tuple[FFI, Any]) -> None:
    table = Table(module, IDS, False)

    def add() -> int | None:
        flight = table.lib.flight_add(table.flights, table.pool, 7, 1)
        return int(flight.id) if flight else None

    assert [add() for _ in range(IDS)] == list(range(1, IDS + 1))
    assert add() is None
    copy = table.ffi.new("flight_t *")
    for id in (40_000, 3, 65_535):
        assert table.lib.flight_on(table.flights, id, ON_PUBACK, copy) == SETTLE
    assert [add() for _ in range(4)] == [3, 40_000, 65_535, None]
    table.lib.flights_leave(table.flights, table.pool)
    assert table.lib.flights_return(table.flights, table.pool, IDS)
    dup, order = table.ffi.new("bool *"), []
    while flight := table.lib.flight_again(table.flights, table.pool, dup):
        order.append(flight.id)
    assert order == [id for id in range(1, IDS) if id not in (40_000, 3)] + [3, 40_000, 65_535]
    table.end()


def test_a_flight_takes_16_bytes_and_an_idle_table_none(module: tuple[FFI, Any]) -> None:
    table = Table(module, 1000, False)
    assert table.ffi.sizeof("flight_t") == 16
    for lsn in range(700):
        table.add(lsn, 1)
    assert table.pool.used_bytes == 1024 * 16
    for id in range(1, 700):
        table.on(id, ON_PUBACK)
    table.leave()
    assert table.pool.used_bytes == 8 * 16
    table.back(1000)
    assert table.again() and not table.again()
    table.on(700, ON_PUBACK)
    table.leave()
    assert table.pool.used_bytes == 0
    table.end()


def test_flights_of_an_earlier_process_are_sent_again_first(module: tuple[FFI, Any]) -> None:
    table = Table(module, 10, True)
    found = table.ffi.new("flight_t *")
    for id, state, told in ((9, SENT, 1), (4, RELEASED, 1), (5, SENT, 0)):
        found.id, found.state, found.qos, found.message, found.told = id, state, 2, 100 + id, told
        assert table.lib.flight_restore(table.flights, table.pool, found)
        assert not table.lib.flight_restore(table.flights, table.pool, found)
    for id, state, qos in ((0, SENT, 1), (1, SENT, 0), (1, SENT, 3), (1, RELEASED, 1), (1, 0, 2), (1, 5, 2)):
        found.id, found.state, found.qos = id, state, qos
        assert not table.lib.flight_restore(table.flights, table.pool, found)
    assert table.lib.flights_return(table.flights, table.pool, 10)
    dup = table.ffi.new("bool *")
    sent = []
    while flight := table.lib.flight_again(table.flights, table.pool, dup):
        sent.append((flight.id, flight.state, dup[0]))
    assert sent == [(9, SENT, True), (4, RELEASED, True), (5, SENT, False)]
    assert table.lib.flight_add(table.flights, table.pool, 1, 1).id == 6
    table.end()
