"""The keys of session tickets are replaced in time: the core gets a fresh context."""

import asyncio
import os

import pytest
from certificates import Authority

from blipmq.base.logs import Log
from blipmq.config.embedded import as_config
from blipmq.native import tls as module
from blipmq.net import tls


class CoreAlike:
    """Records the contexts that it gets, and releases them."""

    def __init__(self):
        self.contexts = []

    def secure(self, table, context, tell):
        self.contexts.append(context)
        module.lib.bqtls_context_free(module.ffi.cast("void *", context))

    def listen(self, fd, secure, mqtt):
        assert secure and not mqtt
        os.close(fd)


@pytest.fixture
def core():
    return CoreAlike()


@pytest.fixture
def one(tmp_path, core):
    cert, key = Authority(tmp_path).sign("broker")
    settings = {
        "server": {"tls_bind_addr": "127.0.0.1:0"},
        "tls": {"cert_file": str(cert), "key_file": str(key)},
        "metrics": {"bind_addr": ""},
    }
    return tls.Tls(as_config(settings), Log(level="error"))


async def listening(one, core):
    await one.listen(core)
    assert len(core.contexts) == 1


def test_the_core_gets_a_fresh_context_when_the_keys_are_old(one, core, monkeypatch):
    asyncio.run(listening(one, core))
    one.tick()
    assert len(core.contexts) == 1
    before = one.certificates.context
    monkeypatch.setattr(tls, "TICKET_SECONDS", 0.0)
    one.tick()
    assert len(core.contexts) == 2 and one.certificates.context is not before
    assert one.certificates.certificate.subject == "broker"
    one.stop()
    one.tick()
    assert len(core.contexts) == 2


def test_without_memory_the_old_keys_stay_and_it_is_tried_again(one, core, monkeypatch):
    asyncio.run(listening(one, core))

    def renewed(context):
        raise module.TlsUnusable(module.Part.LIBRARY, "out of memory")

    monkeypatch.setattr(tls, "TICKET_SECONDS", 0.0)
    with monkeypatch.context() as failing:
        failing.setattr(module.TlsContext, "renewed", renewed)
        one.tick()
        one.tick()
    assert len(core.contexts) == 1
    monkeypatch.setattr(tls, "TICKET_SECONDS", -2 * tls.TICKET_RETRY_SECONDS)
    one.tick()
    assert len(core.contexts) == 2
