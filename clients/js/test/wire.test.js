// The codec: beside the Python code by vectors that tests/test_js_client.py makes ($JS_TEST_VECTORS), and with random input.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { describe, test } from "node:test";
import { given } from "./broker.js";
import { ProtocolError, UsageError } from "../src/errors.js";
import { Unwrapper } from "../src/node_socket.js";
import { checkFilter, checkTopic, matches } from "../src/topics.js";
import { FrameReader, Message, encodeCommand, userProperties } from "../src/wire.js";

const bytes = (hex) => Uint8Array.from(Buffer.from(hex, "hex"));
const hex = (data) => Buffer.from(data).toString("hex");

/** A small generator of random numbers, so that a seed repeats a failure (mulberry32). */
function randoms(seed) {
  const next = () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return (t ^ (t >>> 14)) >>> 0;
  };
  return (most) => next() % (most + 1);
}

/** The frames of a stream in the given pieces, as the vectors write them, and whether it ended with a ProtocolError. */
function read(data, sizes, most) {
  const reader = new FrameReader(most);
  const frames = [];
  try {
    for (let at = 0; at < data.length;) {
      const size = sizes();
      for (const frame of reader.feed(data.slice(at, at + size))) frames.push(shown(frame));
      at += size;
    }
  } catch (error) {
    assert.ok(error instanceof ProtocolError, error);
    assert.ok(error.hint);
    return { frames, broken: true };
  }
  return { frames, broken: false };
}

function shown(frame) {
  if (frame instanceof Message) {
    const { id, topic, payload, timestampMs, ttlMs, qos, redelivered, headers } = frame;
    return { type: "message", id: String(id), topic, payload: hex(payload), timestampMs, ttlMs, qos, redelivered, headers: { ...headers } };
  }
  if (frame.type === 0) return { ...frame, type: "suback" };
  const { seq, code, text, id, payload, subscriptions, keepaliveMs } = frame;
  return { type: "reply", seq, code, text, id: String(id), payload: hex(payload), subscriptions: subscriptions ?? null, keepaliveMs };
}

function accepts(check, text) {
  try {
    check(text);
    return true;
  } catch (error) {
    assert.ok(error instanceof UsageError, error);
    return false;
  }
}

const vectors = JSON.parse(readFileSync(given("JS_TEST_VECTORS"), "utf8"));
// u64 values stand in the file as texts
const numbers = (object, names) => ({ ...object, ...Object.fromEntries(names.filter((name) => object[name] != null).map((name) => [name, Number(BigInt(object[name]))])) });
const expected = (frame) => numbers(frame, ["timestampMs", "ttlMs", "seq", "subscriptions", "keepaliveMs"]);

describe("beside the Python code", () => {
  test("every command has the same bytes", () => {
    for (const { fields, frame } of vectors.commands) {
      const { ttlMs, seq, keepaliveMs, payload, ...others } = fields;
      const command = { ...others, ttlMs: BigInt(ttlMs), seq: BigInt(seq), keepaliveMs: BigInt(keepaliveMs), payload: payload === null ? undefined : bytes(payload) };
      assert.equal(hex(encodeCommand(command)), frame, JSON.stringify(fields));
    }
    assert.ok(vectors.commands.length > 100);
  });

  test("every stream, valid or broken, is read alike in pieces of any size", () => {
    const random = randoms(1);
    for (const { stream, frames, broken } of vectors.streams) {
      const wanted = { frames: frames.map(expected), broken };
      for (const sizes of [() => 1 << 30, () => 1, () => 1 + random(40)]) {
        assert.deepEqual(read(bytes(stream), sizes), wanted, stream);
      }
    }
    assert.ok(vectors.streams.some(({ broken }) => broken) && vectors.streams.some(({ broken }) => !broken));
  });

  test("topics and filters are accepted and match alike", () => {
    for (const { text, topic, filter } of vectors.names) {
      assert.deepEqual([accepts(checkTopic, text), accepts(checkFilter, text)], [topic, filter], JSON.stringify(text));
    }
    for (const { filter, topic, match } of vectors.matches) assert.equal(matches(filter, topic), match, JSON.stringify([filter, topic]));
    assert.ok(vectors.matches.some(({ match }) => match));
  });

  test("user properties are read alike", () => {
    for (const { data, headers } of vectors.properties) assert.deepEqual({ ...userProperties(bytes(data)) }, headers, data);
  });
});

describe("the reader with random input", () => {
  test("never throws anything but ProtocolError, and holds no more than one frame", () => {
    const random = randoms(2);
    // a Message, a Reply and a SubAck by the command encoder: the slots have other meanings, the structure is the same
    const samples = [1, 0, 2].map((type) => {
      const body = encodeCommand({ action: 1, topic: "a/b", payload: new Uint8Array(5), ttlMs: 5n, qos: 1, seq: 7n, group: "g", clientId: "c" }).subarray(4);
      const frame = new Uint8Array(body.length + 5);
      new DataView(frame.buffer).setUint32(0, body.length + 1);
      frame[4] = type;
      frame.set(body, 5);
      return frame;
    });
    for (let i = 0; i < 20_000; i++) {
      const sample = samples[random(2)].slice();
      for (let flips = random(3); flips > 0; flips--) sample[random(sample.length - 1)] = random(255);
      const data = sample.slice(0, 1 + random(sample.length - 1 + (random(1) ? 0 : 10)));
      const whole = read(data, () => 1 << 30, 4096);
      assert.deepEqual(read(data, () => 1 + random(20), 4096), whole, hex(data));
    }
  });

  test("refuses a length over the limit as soon as it is read", () => {
    assert.equal(read(bytes("00001001"), () => 4, 4096).broken, true);
    assert.equal(read(bytes("00001000"), () => 4, 4096).broken, false);
    assert.equal(read(bytes("ffffffff"), () => 4).broken, true);
    assert.equal(read(bytes("00000001"), () => 4).broken, true);
  });
});

describe("the reader of WebSocket frames in Node", () => {
  const frame = (first, payload, masked = 0) => {
    const size = payload.length;
    const head = size < 126 ? [first, masked | size] : size < 65536 ? [first, masked | 126, size >> 8, size & 255]
      : [first, masked | 127, 0, 0, 0, 0, size >>> 24, (size >> 16) & 255, (size >> 8) & 255, size & 255];
    return Buffer.concat([Buffer.from(head), payload]);
  };
  const unwrap = (stream, sizes) => {
    const data = [], controls = [];
    const unwrapper = new Unwrapper({ data: (part) => data.push(Buffer.from(part)), control: (opcode, part) => controls.push([opcode, part.toString()]) });
    for (let at = 0; at < stream.length;) {
      const size = sizes();
      unwrapper.feed(stream.subarray(at, at + size));
      at += size;
    }
    return { data: Buffer.concat(data).toString("hex"), controls };
  };

  test("joins the payloads of messages and fragments, with control frames between them, in pieces of any size", () => {
    const random = randoms(3);
    for (let i = 0; i < 300; i++) {
      const parts = [], payloads = [], controls = [];
      for (let messages = random(3); messages >= 0; messages--) {
        for (let fragments = random(2), first = true; fragments >= 0; fragments--, first = false) {
          const payload = Buffer.alloc([0, 1, 125, 126, 300, 65535, 65536][random(i % 20 ? 4 : 6)], random(255));
          parts.push(frame((fragments ? 0 : 0x80) | (first ? 2 : 0), payload));
          payloads.push(payload);
          if (random(1)) {
            controls.push([9, "ping"]);
            parts.push(frame(0x89, Buffer.from("ping")));
          }
        }
      }
      const wanted = { data: Buffer.concat(payloads).toString("hex"), controls };
      for (const sizes of [() => 1 << 30, () => 1 + random(200)]) assert.deepEqual(unwrap(Buffer.concat(parts), sizes), wanted);
    }
  });

  test("refuses what RFC 6455 forbids a server", () => {
    const wrong = {
      masked: frame(0x82, Buffer.alloc(4), 0x80), extension: frame(0xc2, Buffer.alloc(1)), text: frame(0x81, Buffer.from("a")),
      continuation: frame(0x80, Buffer.alloc(1)), "message in a message": Buffer.concat([frame(0x02, Buffer.alloc(1)), frame(0x82, Buffer.alloc(1))]),
      "long ping": frame(0x89, Buffer.alloc(126)), "fragmented ping": frame(0x09, Buffer.alloc(1)), "opcode 11": frame(0x8b, Buffer.alloc(1)),
      "too long": Buffer.from([0x82, 127, 0, 0, 1, 0, 0, 0, 0, 0]),
    };
    for (const [name, stream] of Object.entries(wrong)) assert.throws(() => unwrap(stream, () => 1), undefined, name);
  });
});
