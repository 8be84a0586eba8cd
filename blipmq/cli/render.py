"""How the command line shows things: messages, answers, errors, and what a broker says about itself.

Invariant: nothing here does I/O. Bytes that came over the network reach a terminal only with control characters
escaped; a pipe gets a payload exactly as it was published.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from blipmq.errors import BlipMQError
from blipmq.wire import Message

Renderer = Callable[[list[Message]], bytes]


class Stream(Protocol):
    @property
    def encoding(self) -> str: ...
    def isatty(self) -> bool: ...


def is_fancy(stream: Stream, environment: Mapping[str, str]) -> bool:
    """Whether a person looks at this stream and wants more than plain text (https://no-color.org)."""
    utf8 = (stream.encoding or "").lower().replace("-", "") == "utf8"
    return utf8 and stream.isatty() and not environment.get("NO_COLOR") and environment.get("TERM") != "dumb"


_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(32), 127, *range(128, 160)) if chr(code) not in "\n\t"}


def printable(data: bytes) -> str:
    """Text that cannot move the cursor, change colours or ring the bell of the terminal it is shown on."""
    return data.decode("utf-8", "backslashreplace").translate(_ESCAPES)


class OutageNotices:
    """A client's on_state that says when an outage begins and when it is over, not each attempt in between."""

    def __init__(self, say: Callable[[str, str], None]) -> None:
        self._say = say
        self._out = False

    def __call__(self, state: str, error: BlipMQError | None) -> None:
        if state == "disconnected" and not self._out:
            self._out = True
            self._say("❌", f"{error} Trying again.")
        elif state == "connected" and self._out:
            self._out = False
            self._say("✅", "Connected again.")


# ---- messages --------------------------------------------------------------------------------------------------------


def render_payloads(messages: list[Message]) -> bytes:
    """-q: the payloads, a newline after each."""
    payloads = [message.payload for message in messages]
    payloads.append(b"")
    return b"\n".join(payloads)


def render_plain(messages: list[Message]) -> bytes:
    """Topic, tab, payload as it is. A topic holds no tab, so the first one always ends it."""
    return b"".join([b"%s\t%s\n" % (message.topic.encode(), message.payload) for message in messages])


def render_fancy(messages: list[Message]) -> bytes:
    """For a person at a terminal."""
    lines = []
    for message in messages:
        again = " (again)" if message.redelivered else ""
        lines.append(f"📥 {message.topic}{again}  {printable(message.payload)}\n")
    return "".join(lines).encode("utf-8", "backslashreplace")


class JsonRenderer:
    """One object a line. `sequence` counts the messages of this run from 1."""

    def __init__(self) -> None:
        import json  # only wanted here, and the command line must start fast

        self._encode = json.JSONEncoder(ensure_ascii=False).encode
        self._sequence = 0

    def __call__(self, messages: list[Message]) -> bytes:
        return "".join([self._line(message) for message in messages]).encode()

    def _line(self, message: Message) -> str:
        self._sequence += 1
        try:
            payload = {"payload": message.payload.decode("utf-8")}
        except UnicodeDecodeError:
            import base64

            payload = {"payload_base64": base64.b64encode(message.payload).decode("ascii")}
        fields = {
            "id": message.id,
            "topic": message.topic,
            **payload,
            "timestamp": message.timestamp_ms,
            "ttl_ms": message.ttl_ms,
            "qos": message.qos,
            "redelivered": message.redelivered,
            "sequence": self._sequence,
        }
        return self._encode(fields) + "\n"


def message_renderer(*, quiet: bool, json: bool, fancy: bool) -> Renderer:
    if json:
        return JsonRenderer()
    if quiet:
        return render_payloads
    return render_fancy if fancy else render_plain


# ---- quantities ------------------------------------------------------------------------------------------------------


def count(number: int, noun: str) -> str:
    """1 message, 2 messages, 1,200 messages."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def bytes_text(size_bytes: float) -> str:
    """A size in words that can be read out: 512 bytes, 1.5 KiB, 64 MiB."""
    if size_bytes < 1024:
        return count(int(size_bytes), "byte")
    units = ["TiB", "GiB", "MiB", "KiB"]
    amount = size_bytes / 1024
    while amount >= 1023.95 and len(units) > 1:
        amount /= 1024
        units.pop()
    digits = 0 if amount >= 100 or amount == int(amount) else 1
    return f"{amount:.{digits}f} {units[-1]}"


def duration_text(seconds: float) -> str:
    """The two largest units that are not zero: 3 days 4 hours, 12 minutes 5 seconds."""
    rest, parts = int(seconds), []
    for unit_s, noun in ((86_400, "day"), (3600, "hour"), (60, "minute"), (1, "second")):
        amount, rest = divmod(rest, unit_s)
        if amount:
            parts.append(count(amount, noun))
    return " ".join(parts[:2]) or "less than a second"


# ---- info ------------------------------------------------------------------------------------------------------------


def render_info(info: Mapping[str, Any], *, fancy: bool) -> str:
    """What a technician reads out over the phone. A key that the broker does not send is left out, or shown as
    unknown."""
    title = f"BlipMQ {_text(info.get('version'))} at {_text(info.get('address'))}"
    rows = [(label, value) for label, value in _info_rows(info) if value]
    width = max(len(label) for label, _ in rows)
    lines = [f"📊 {title}" if fancy else title, *(f"{label:<{width}}  {value}" for label, value in rows)]
    return "\n".join([*lines, *_subscription_lines(info)]) + "\n"


def _info_rows(info: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    messages, rates, memory = _map(info, "messages"), _map(info, "rates"), _map(info, "memory")
    yield "State", _state(info)
    yield "Up for", duration_text(info["uptime_s"]) if _is_number(info.get("uptime_s")) else ""
    yield "Clients", _number(info.get("clients"))
    yield "Topics", _number(info.get("topics"))
    yield "Messages in", _flow(messages.get("published"), rates.get("in_per_s"))
    yield "Messages out", _flow(messages.get("delivered"), rates.get("out_per_s"))
    yield "Waiting", _number(messages.get("queued"))
    yield "Dropped", _dropped(_map(messages, "dropped"))
    yield "Without reader", _number(messages.get("unrouted"))
    yield "Memory", _share(memory.get("used_bytes"), memory.get("budget_bytes"))
    if "log" in info:
        yield "Log", _log(info["log"])
    yield "Disk free", bytes_text(info["disk_free_bytes"]) if _is_number(info.get("disk_free_bytes")) else ""
    yield from _hardware_rows(_map(info, "hardware"))
    yield "Subscriptions", _number(info.get("subscriptions_total", len(_list(info, "subscriptions"))))


def _state(info: Mapping[str, Any]) -> str:
    reasons = ", ".join(_text(reason) for reason in _list(info, "reasons"))
    return _text(info.get("state")) + (f", because: {reasons}" if reasons else "")


def _dropped(dropped: Mapping[str, Any]) -> str:
    names = (("ttl", "expired"), ("queue_full", "queue full"), ("disconnect", "reader gone"))
    known = [(text, dropped[key]) for key, text in names if _is_number(dropped.get(key))]
    total = sum(number for _, number in known)
    detail = ", ".join(f"{text} {number:,}" for text, number in known)
    return f"{total:,} ({detail})" if total else "none" if known else ""


def _log(log: object) -> str:
    if not isinstance(log, Mapping):
        return "off"
    return ", ".join(f"{_text(key).replace('_', ' ')} {_text(value)}" for key, value in log.items()) or "on"


def _hardware_rows(hardware: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if _is_number(hardware.get("temperature_c")):
        yield "Temperature", f"{hardware['temperature_c']:.0f} °C"
    if "throttled" in hardware:
        yield "Processor", "slowed down, too hot or too little power" if hardware["throttled"] else "full speed"
    if "undervoltage" in hardware:
        yield "Power", "UNDER-VOLTAGE: use a stronger supply or a shorter cable" if hardware["undervoltage"] else "good"


def _subscription_lines(info: Mapping[str, Any]) -> Iterator[str]:
    for entry in _list(info, "subscriptions"):
        if not isinstance(entry, Mapping):
            continue
        name = _text(entry.get("client") or entry.get("peer"))
        filters = ", ".join(_text(filter_) for filter_ in _list(entry, "filters"))
        expired, full = (entry.get(key, 0) for key in ("dropped_ttl", "dropped_queue_full"))
        parts = [
            f"{_number(entry.get('queued_messages', 0))} waiting",
            f"{_number(entry.get('delivered', 0))} delivered",
        ]
        if _is_number(expired) and _is_number(full) and expired + full:
            parts.append(f"{expired + full:,} dropped (expired {expired:,}, queue full {full:,})")
        if entry.get("blocked"):
            parts.append("its network takes no more at the moment")
        yield f"  {name}  {filters}: {', '.join(parts)}"
    shown, total = len(_list(info, "subscriptions")), info.get("subscriptions_total", 0)
    if _is_number(total) and 0 < shown < total:
        yield f"  … and more, {total:,} in all"


def _map(info: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = info.get(key)
    return value if isinstance(value, Mapping) else {}


def _list(info: Mapping[str, Any], key: str) -> list[Any]:
    value = info.get(key)
    return value if isinstance(value, list) else []


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _text(value: object) -> str:
    return "unknown" if value is None else printable(str(value).encode("utf-8", "replace")).replace("\n", " ")


def _number(value: Any) -> str:
    return f"{value:,}" if _is_number(value) else ""


def _flow(total: Any, per_s: Any) -> str:
    rate = f", {per_s:,.0f} a second now" if _is_number(per_s) else ""
    return _number(total) + rate if _is_number(total) else ""


def _share(used_bytes: Any, budget_bytes: Any) -> str:
    if not _is_number(used_bytes):
        return ""
    if not _is_number(budget_bytes) or not budget_bytes:
        return bytes_text(used_bytes)
    return f"{bytes_text(used_bytes)} of {bytes_text(budget_bytes)} ({100 * used_bytes / budget_bytes:.0f} %)"
