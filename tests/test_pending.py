"""Pending TLS connections: the admission rule of the core, and its limits before and after a reload."""

import asyncio

import pytest
from certificates import Authority
from door_twin import DoorTwin
from hypothesis import given
from hypothesis import strategies as st

from blipmq.base.logs import Log
from blipmq.base.peer import place_of
from blipmq.config.settings import Config, Limits
from blipmq.config.settings import Tls as TlsSettings
from blipmq.net.admission import Bounds, Crowded, Pending
from blipmq.net.tls import Tls
from blipmq.net.tls_listener import TlsListener

STRANGER = "203.0.113.7"
ADDRESSES = ["127.0.0.1", "::1", STRANGER, "::ffff:203.0.113.7", "198.51.100.8", "2001:db8::1", "2001:db8::2%eth0"]
ADDRESSES += ["2001:db8:0:1::1"]


def test_a_limited_address_is_ipv4_or_an_ipv6_network_and_never_loopback():
    assert place_of("127.0.0.1") == place_of("127.1.2.3") == place_of("::1") == place_of("::ffff:127.0.0.9") == b""
    assert place_of(STRANGER) == place_of("::ffff:203.0.113.7") != place_of("203.0.113.8")
    assert place_of("2001:db8::1") == place_of("2001:db8::ffff:2%eth0") != place_of("2001:db8:0:1::1")
    assert place_of("fe80::1%2") == place_of("fe80::2%3") != b""


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("arrive"), st.sampled_from(ADDRESSES)),
        st.tuples(st.sampled_from(["look", "leave"]), st.integers(0, 9)),
    ),
    max_size=60,
)


def plain(address):
    """The address in the form that the ipaddress module of the model accepts."""
    return address.partition("%")[0].removeprefix("::ffff:")


@given(steps=STEPS, total=st.integers(1, 5), each=st.integers(1, 3))
def test_admission_matches_reference_model(steps, total, each):
    twin, pending = DoorTwin(total, each, most=1000, hello_ms=1, now_ms=0), Pending()
    bounds = Bounds(total, each, 1.0)
    for step, (what, value) in enumerate(steps):
        standing = sorted(twin.pending)
        if what == "arrive":
            try:
                pending.enter(step, value, bounds)
                entered = True
            except Crowded:
                entered = False
            assert entered == twin.arrive(step, plain(value)), f"step {step}"
        elif standing:
            name = standing[value % len(standing)]
            if what == "leave":
                twin.leave(name)
                pending.leave(name)
            elif name not in twin.heard:
                twin.hello(name)
                pending.look(name)
        assert pending.all() == sorted(twin.pending), f"step {step}: {what} {value}"


def test_a_checked_connection_keeps_its_position():
    pending, bounds = Pending(), Bounds(2, 2, 1.0)
    pending.enter("a", STRANGER, bounds)
    pending.enter("b", STRANGER, bounds)
    pending.look("a")
    pending.answer("a")
    assert pending.enter("c", "198.51.100.8", bounds) == "a"
    pending.look("b")
    pending.look("c")
    with pytest.raises(Crowded, match="all wait for the broker"):
        pending.enter("d", "198.51.100.9", bounds)
    for one in "b", "c", "never there":
        pending.leave(one)
    assert not len(pending) and repr(pending) == "<Pending 0 looked_at=0 places=0>"


# ---- the listener and its settings -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    cert, key = Authority(tmp_path_factory.mktemp("authority")).sign("broker")
    limits = Limits(max_pending=3, max_pending_per_address=2, hello_timeout_ms=1500)
    return Config(tls=TlsSettings(cert_file=str(cert), key_file=str(key)), limits=limits)


def with_limits(config, **limits):
    return Config(tls=config.tls, limits=Limits(**limits))


class Newcomer:
    """The part of a new TLS connection that the listener needs."""

    def __init__(self, host):
        self.peer, self.name, self.aborted = (host, 4711), host, False

    def abort(self):
        self.aborted = True

    def get_extra_info(self, name):
        assert name == "socket"


def test_a_reload_changes_the_address_limit_and_timeout_but_not_the_total(config):
    tls = Tls(config, Log(level="error"))
    assert tls.bounds() == Bounds(3, 2, 1.5)
    tls.apply(with_limits(config, max_pending=9, max_pending_per_address=1, hello_timeout_ms=200))
    assert tls.bounds() == Bounds(3, 1, 0.2)


def test_the_listener_applies_current_limits_to_each_new_connection(config):
    async def run():
        tls = Tls(config, Log(level="error"))
        listener = TlsListener("127.0.0.1:0", "x", tls.certificates, lambda _: None, tls.bounds, Log(level="error"))
        await listener.start()
        first, second, third = (Newcomer(STRANGER) for _ in range(3))
        _, seconds = listener.came(first)
        assert seconds == 1.5 and listener.came(second) and listener.came(third) is None, "two of one address"
        tls.apply(with_limits(config, max_pending_per_address=3, hello_timeout_ms=500))
        fourth = Newcomer(STRANGER)
        _, seconds = listener.came(fourth)
        assert seconds == 0.5 and not first.aborted
        assert listener.came(Newcomer("198.51.100.8")) and first.aborted, "three in all"
        assert listener.pending_count == 3 and listener.counts["refused"] == 2
        for connection in first, second, third, fourth:
            listener.gone(connection)
        assert listener.pending_count == 1
        listener.close()

    asyncio.run(run())
