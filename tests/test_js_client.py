"""The JavaScript client, clients/js: its own tests by Node, beside the Python wire code; in a browser; as a package.

Invariant: packaging/setup.sh installs Node and the browser, and npm installs what package.json pins. Nothing is left in the tree.
"""

import gzip
import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from broker_process import ROOT
from certificates import Authority

from blipmq.errors import BlipMQError, ProtocolError
from blipmq.wire import frames as wire
from blipmq.wire.flatbuffer import U8, U16, U64, assemble
from blipmq.wire.properties import user_properties
from blipmq.wire.topics import check_filter, check_topic, match

CLIENT = ROOT / "clients" / "js"
SETUP = ROOT / "packaging" / "setup.sh"
SEED = 17
SIZE_MAX = 12 * 1024
U64_MAX = (1 << 64) - 1


@pytest.fixture(scope="module")
def node():
    """The folder of the programs of Node's oldest supported version."""
    folder = Path(sys.prefix) / "lib" / "node" / "bin"
    if not (folder / "node").exists():
        subprocess.run([SETUP, "node", sys.prefix], check=True, timeout=600)
    return folder


@pytest.fixture(scope="module")
def variables(tmp_path_factory):
    """What the tests in JavaScript are given. A preloaded sanitizer is for the broker only, so its command sets it."""
    folder = tmp_path_factory.mktemp("js")
    authority = Authority(folder)
    authority.sign("server")
    shutil.copy(authority.file, folder / "ca.pem")
    preload = os.environ.get("LD_PRELOAD")
    command = [sys.executable, "-m", "blipmq"]
    return {
        "JS_TEST_BLIPMQ": " ".join(
            ["env", *([f"LD_PRELOAD={preload.replace(' ', ':')}"] if preload else []), *command]
        ),
        "JS_TEST_CERTIFICATES": str(folder),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }


def run(command, cwd, **variables):
    """The output of a program, which must succeed."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith("BLIPMQ_") and name != "LD_PRELOAD"
    }
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env={**kept, **variables}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{done.stdout[-20_000:]}\n{done.stderr[-5_000:]}"
    return done.stdout


def run_tests(node, name, **variables):
    """Run one file of tests. All must pass, and none may be left out."""
    output = run([node / "node", "--test", "--test-reporter=tap", CLIENT / "test" / name], CLIENT, **variables)
    counts = dict(re.findall(r"^# (\w+) (\d+)$", output, re.MULTILINE))
    assert int(counts["pass"]) == int(counts["tests"]) > 0 and counts["skipped"] == counts["todo"] == "0", output
    return int(counts["tests"])


# ---- vectors ----


def number(pick):
    return pick.choice([0, 1, pick.randrange(256), pick.randrange(1 << 32), pick.randrange(1 << 53), U64_MAX])


def text(pick, most=40):
    return "".join(pick.choice("abc/.$+#>*é€𝄞 ") for _ in range(pick.randrange(most)))


def make_command(pick):
    fields = {
        "action": pick.choice([0, 1, 2, 3, 4, 5, 6, 7]),
        "topic": text(pick),
        "payload": pick.choice([None, b"", pick.randbytes(pick.randrange(200))]),
        "ttl_ms": number(pick),
        "qos": pick.randrange(2),
        "seq": number(pick),
        "client_id": text(pick),
        "api_key": text(pick),
        "protocol": pick.choice([0, 1, 0xFFFF]),
        "durable": pick.random() < 0.5,
        "group": text(pick),
        "keepalive_ms": number(pick),
        "keep_durable": pick.random() < 0.5,
    }
    for name in fields:
        if name != "action" and pick.random() < 0.5:
            fields[name] = None if name == "payload" else type(fields[name])()
    frame = wire.encode_command(**fields)
    shown = {re.sub(r"_(\w)", lambda part: part[1].upper(), name): value for name, value in fields.items()}
    shown["payload"] = None if fields["payload"] is None else fields["payload"].hex()
    shown |= {name: str(shown[name]) for name in ("ttlMs", "seq", "keepaliveMs")}
    return {"fields": shown, "frame": frame.hex()}


def make_properties(pick):
    """MQTT 5 properties, with some damage."""
    data = b""
    for _ in range(pick.randrange(4)):
        kind = pick.choice([0x26, 0x26, 0x01, 0x13, 0x02, 0x03, 0x0B])
        name, value = text(pick, 9).encode(), text(pick, 9).encode()
        part = {
            0x26: len(name).to_bytes(2, "big") + name + len(value).to_bytes(2, "big") + value,
            0x01: b"\1",
            0x13: b"\0\5",
            0x02: b"\0\0\0\5",
            0x03: len(name).to_bytes(2, "big") + name,
            0x0B: b"\x80\1",
        }[kind]
        data += bytes([kind]) + part
    if data and pick.random() < 0.3:
        at = pick.randrange(len(data))
        data = data[:at] + pick.randbytes(pick.randrange(3)) + data[at + 1 :]
    return data


def make_frame(pick):
    """A frame of the broker."""
    kind = pick.choice([wire.SUBACK, wire.MESSAGE, wire.MESSAGE, wire.REPLY])
    payload = pick.randbytes(pick.choice([0, 3, 70]))
    parts = {
        wire.SUBACK: ([(2, U64, number(pick)), (3, U16, pick.choice([0, 403]))], [(0, text(pick)), (1, text(pick))]),
        wire.MESSAGE: (
            [(0, U64, number(pick)), (2, U64, number(pick)), (3, U64, number(pick)), (5, U8, 1), (6, U8, pick.randrange(2))],
            [(1, payload), (4, text(pick)), (8, make_properties(pick))],
        ),
        wire.REPLY: (
            [(0, U64, number(pick)), (3, U64, number(pick)), (5, U64, number(pick)), (6, U64, number(pick)), (1, U16, 503)],
            [(2, text(pick)), (4, payload)],
        ),
    }  # fmt: skip
    scalars, vectors = parts[kind]
    vectors = [
        (slot, data.encode() + b"" if isinstance(data, str) else data, b"\0" * isinstance(data, str))
        for slot, data in vectors
    ]
    body = assemble([s for s in scalars if pick.random() < 0.8], [v for v in vectors if pick.random() < 0.8])
    return (len(body) + 1).to_bytes(4, "big") + bytes([kind]) + body


def show(frame):
    if isinstance(frame, wire.Message):
        return {
            "type": "message", "id": str(frame.id), "topic": frame.topic, "payload": frame.payload.hex(),
            "timestampMs": str(frame.timestamp_ms), "ttlMs": str(frame.ttl_ms), "qos": frame.qos,
            "redelivered": frame.redelivered, "headers": frame.headers,
        }  # fmt: skip
    if isinstance(frame, wire.SubAck):
        return {"type": "suback", "topic": frame.topic, "text": frame.info, "seq": str(frame.seq), "code": frame.code}
    subscriptions = None if frame.subscriptions is None else str(frame.subscriptions)
    return {
        "type": "reply", "seq": str(frame.seq), "code": frame.code, "text": frame.message, "id": str(frame.id),
        "payload": frame.payload.hex(), "subscriptions": subscriptions, "keepaliveMs": str(frame.keepalive_ms),
    }  # fmt: skip


def read_stream(stream):
    reader, frames = wire.FrameReader(), []
    try:
        frames = reader.feed(stream)
    except ProtocolError:
        pass
    return {"stream": stream.hex(), "frames": [show(frame) for frame in frames], "broken": reader.broken is not None}


def make_streams(pick):
    known = json.loads((ROOT / "tests" / "vectors.json").read_text(encoding="utf-8"))
    yield from (bytes.fromhex(vector["frame"]) for part in ("valid", "broken") for vector in known[part])
    for _ in range(300):
        yield b"".join(make_frame(pick) for _ in range(pick.randrange(1, 4)))
    for _ in range(1500):
        damaged = bytearray(b"".join(make_frame(pick) for _ in range(2)))
        for _ in range(pick.randrange(1, 4)):
            damaged[pick.randrange(len(damaged))] = pick.choice([0, 1, 4, 0x7F, 0xFF, pick.randrange(256)])
        damaged[0:2] = b"\0\0"  # else nearly all are lengths beyond the end
        yield bytes(damaged[: pick.randrange(1, len(damaged) + 1)] if pick.random() < 0.2 else damaged)


def is_accepted(check, name):
    try:
        check(name)
    except BlipMQError:
        return False
    return True


def make_vectors():
    pick = random.Random(SEED)
    levels = ["a", "b", "", "$x", "+", "#", "*", ">", "a+", "é", "\x00", "\x85", "\x7f", "\ufeff", "\u200b"]
    names = [pick.choice("/.").join(pick.choices(levels, k=pick.randrange(1, 5))) for _ in range(2000)]
    names += ["a" * 256, "a" * 257, "é" * 128, "é" * 129]
    rows = [
        {"text": name, "topic": is_accepted(check_topic, name), "filter": is_accepted(check_filter, name)}
        for name in names
    ]
    filters, topics = ([row["text"] for row in rows if row[kind]] for kind in ("filter", "topic"))
    pairs = [(pick.choice(filters), pick.choice(topics)) for _ in range(5000)]
    properties = [make_properties(pick) for _ in range(500)]
    return {
        "commands": [make_command(pick) for _ in range(500)],
        "streams": [read_stream(stream) for stream in make_streams(pick)],
        "names": rows,
        "matches": [{"filter": f, "topic": t, "match": match(f, t)} for f, t in pairs],
        "properties": [{"data": data.hex(), "headers": user_properties(data)} for data in properties],
    }  # fmt: skip


# ---- tests ----


def test_the_codec_agrees_with_the_python_code_and_survives_random_input(node, tmp_path):
    vectors = make_vectors()
    assert {stream["broken"] for stream in vectors["streams"]} == {True, False}
    (tmp_path / "vectors.json").write_text(json.dumps(vectors), encoding="utf-8")
    assert run_tests(node, "wire.test.js", JS_TEST_VECTORS=str(tmp_path / "vectors.json")) >= 8


def test_the_client_works_with_a_broker_through_every_outage(node, variables):
    assert run_tests(node, "client.test.js", **variables) >= 40


def test_the_readme_of_the_client_shows_what_happens(node, variables):
    assert run_tests(node, "readme.test.js", **variables) >= 5


@pytest.mark.slow  # the browser is 60 MB
def test_the_client_works_in_a_browser(node, variables):
    subprocess.run([SETUP, "browser"], check=True, timeout=600)
    browser = shutil.which("chromium-headless-shell")
    assert run_tests(node, "browser.test.js", JS_TEST_BROWSER=browser, **variables) == 3


@pytest.mark.slow  # typescript and esbuild come from npm
def test_the_package_has_types_a_small_bundle_and_works_where_it_is_installed(node, tmp_path):
    source, user = tmp_path / "js", tmp_path / "user"
    shutil.copytree(CLIENT, source, ignore=shutil.ignore_patterns("node_modules", "types", "dist"))
    npm = {"PATH": f"{node}{os.pathsep}{os.environ['PATH']}", "NO_UPDATE_NOTIFIER": "1"}
    run([node / "npm", "ci", "--no-audit", "--no-fund"], source, **npm)
    run(
        [node / "npm", "pack", "--pack-destination", tmp_path], source, **npm
    )  # tsc checks the source and writes the types
    (archive,) = tmp_path.glob("blipmq-*.tgz")
    assert len(gzip.compress((source / "dist" / "blipmq.min.js").read_bytes(), mtime=0)) < SIZE_MAX

    user.mkdir()
    (user / "package.json").write_text('{"type": "module", "private": true}')
    shutil.copy(CLIENT / "test" / "user.ts", user)
    run([node / "npm", "install", "--no-audit", "--no-fund", archive], user, **npm)
    package = user / "node_modules" / "blipmq"
    installed = {path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file()}
    assert {
        "src/node.js",
        "src/browser.js",
        "types/node.d.ts",
        "types/browser.d.ts",
        "dist/blipmq.min.js",
        "README.md",
        "LICENSE",
    } <= installed
    assert not [name for name in installed if name.startswith("test/")]
    compiler = source / "node_modules" / "typescript" / "bin" / "tsc"
    for module in ("nodenext", "bundler"):
        kind = "nodenext" if module == "nodenext" else "esnext"
        run([node / "node", compiler, "--strict", "--noEmit", "--target", "es2022", "--lib", "es2022,esnext.disposable,dom",
             "--module", kind, "--moduleResolution", module, "user.ts"], user)  # fmt: skip
    program = (
        "import * as b from 'blipmq'; await b.connect('x').catch((error) => console.log(error instanceof b.UsageError))"
    )
    assert run([node / "node", "--input-type=module", "--eval", program], user) == "true\n"


def test_the_package_has_the_version_and_the_licence_of_the_project():
    from blipmq.version import __version__

    package = json.loads((CLIENT / "package.json").read_text(encoding="utf-8"))
    assert package["version"] == re.sub(r"\.dev(\d+)$", r"-dev.\1", __version__)
    assert "dependencies" not in package
    assert (CLIENT / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
