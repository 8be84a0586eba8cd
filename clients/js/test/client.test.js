// The client against a real broker, over ws and wss, through outages of every kind.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { after, afterEach, before, describe, test } from "node:test";
import * as blipmq from "../src/node.js";
import { given, startBroker, startProxy, until } from "./broker.js";

const { connect } = blipmq;
const clients = [];
let broker, proxy;

/** A client that is closed after the test. */
async function open(url = broker.url, options = {}) {
  const client = await connect(url, options);
  clients.push(client);
  return client;
}

async function take(subscription, count) {
  const found = [];
  while (found.length < count) found.push(await subscription.receive({ timeoutMs: 60_000 }));
  return found;
}

const texts = (messages) => messages.map((message) => message.text());

before(async () => {
  broker = await startBroker({ qos1: "max_in_flight = 50" });
  proxy = await startProxy(broker);
});
after(async () => {
  await proxy.end();
  await broker.end();
});
afterEach(async () => {
  Object.assign(proxy, { refuses: false, deaf: false, stalled: false });
  await Promise.all(clients.splice(0).map((client) => client.close({ timeoutMs: 1000 })));
});

describe("messages", () => {
  test("arrive with topic, payload and times", async () => {
    const client = await open();
    const messages = await client.subscribe("site/+/temp");
    assert.deepEqual(await client.publish("site/1/temp", "21.5", { ttlMs: 60_000 }), { id: 0n, subscriptions: undefined, resent: false });
    await client.publish("site/2/temp", new Uint8Array([0, 255, 128]));
    await client.publish("site/3/temp", new Uint16Array([0x0102]).buffer);
    const [first, second, third] = await take(messages, 3);
    assert.equal(first.topic, "site/1/temp");
    assert.equal(first.text(), "21.5");
    assert.equal(first.json(), 21.5);
    assert.equal(first.ttlMs, 60_000);
    assert.ok(Math.abs(first.timestampMs - Date.now()) < 60_000);
    assert.ok(first.id > 0n && second.id > first.id);
    assert.deepEqual([...second.payload], [0, 255, 128]);
    assert.deepEqual([...third.payload], [2, 1]);
    assert.equal(JSON.parse(JSON.stringify(first)).payload, "21.5");
  });

  test("of all sizes come in order, those over one WebSocket message too", async () => {
    const client = await open();
    const messages = await client.subscribe("sizes");
    const sizes = [0, 1, 100, 65_000, 65_536, 200_000, 1_000_000];
    await Promise.all(sizes.map((size) => client.publish("sizes", new Uint8Array(size).fill(size % 251))));
    for (const size of sizes) {
      const { payload } = await messages.receive({ timeoutMs: 60_000 });
      assert.equal(payload.length, size);
      assert.ok(payload.every((byte) => byte === size % 251));
    }
  });

  test("of 20,000 publishes keep their order over both QoS", async () => {
    const client = await open();
    const messages = await client.subscribe("order", { queueMessages: 20_000 });
    const receipts = [];
    for (let i = 0; i < 20_000; i++) {
      const published = client.publish("order", String(i), { qos: i % 1000 === 0 ? 1 : 0 });
      if (i % 1000 === 0) receipts.push(published);
      else if (i % 500 === 499) await published;
      else published.catch(() => {});
    }
    const found = texts(await take(messages, 20_000));
    assert.deepEqual(found, Array.from({ length: 20_000 }, (_, i) => String(i)));
    assert.equal(messages.dropped, 0);
    assert.equal((await Promise.all(receipts)).filter(({ id }) => id > 0n).length, 20);
  });

  test("expire by their time to live", async () => {
    const reader = await open(undefined, { clientId: "ttl" });
    await reader.subscribe("ttl", { qos: 1, durable: true });
    await reader.close();
    const writer = await open();
    await writer.publish("ttl", "old", { qos: 1, ttlMs: 1 });
    await writer.publish("ttl", "new", { qos: 1 });
    await new Promise((resolve) => setTimeout(resolve, 20));
    const back = await open(undefined, { clientId: "ttl" });
    const messages = await back.subscribe("ttl", { qos: 1, durable: true });
    assert.equal((await messages.receive({ timeoutMs: 60_000 })).text(), "new");
    await back.unsubscribe("ttl");
  });
});

describe("QoS 1", () => {
  test("a receipt has the id and the number of subscriptions", async () => {
    const client = await open();
    assert.equal((await client.publish("nobody", "x", { qos: 1 })).subscriptions, 0);
    const messages = await client.subscribe("somebody", { qos: 1 });
    const receipt = await client.publish("somebody", "x", { qos: 1 });
    const message = await messages.receive({ timeoutMs: 60_000 });
    assert.deepEqual(receipt, { id: message.id, subscriptions: 1, resent: false });
  });

  test("a message is acknowledged when the next is asked for, so more than one window comes", async () => {
    const client = await open();
    const messages = await client.subscribe("window", { qos: 1 });
    const numbers = Array.from({ length: 500 }, (_, i) => String(i));
    await Promise.all(numbers.map((number) => client.publish("window", number, { qos: 1 })));
    const found = [];
    for await (const message of messages) {
      found.push(message.text());
      if (found.length === 500) break;
    }
    assert.deepEqual(found, numbers);
  });

  test("without an acknowledgement the broker stops at its window, and goes on after it", async () => {
    const client = await open(undefined, { clientId: "held" });
    const messages = await client.subscribe("held", { qos: 1, durable: true, autoAck: false });
    await Promise.all(Array.from({ length: 60 }, (_, i) => client.publish("held", String(i), { qos: 1 })));
    const first = await take(messages, 50);
    await client.ping();
    assert.equal(messages.queued, 0);
    messages.ack(...first);
    assert.deepEqual(texts(await take(messages, 10)), Array.from({ length: 10 }, (_, i) => String(50 + i)));
    await client.unsubscribe("held");
  });

  test("a loop that is left by an exception does not acknowledge its message; close does what receive gave", async () => {
    const client = await open(undefined, { clientId: "left" });
    await client.subscribe("left", { qos: 1, durable: true }).then((messages) => messages.close());
    for (const text of ["a", "b"]) await client.publish("left", text, { qos: 1 });
    const messages = await client.subscribe("left", { qos: 1, durable: true });
    await assert.rejects(async () => {
      for await (const message of messages) throw new Error(message.text());
    }, /^Error: a$/);
    await client.close();

    const second = await open(undefined, { clientId: "left" });
    const again = await second.subscribe("left", { qos: 1, durable: true });
    const [a, b] = await take(again, 2);
    assert.deepEqual([a.text(), a.redelivered, b.text()], ["a", true, "b"]);
    await again.close();
    await second.close();

    const third = await open(undefined, { clientId: "left" });
    const rest = await third.subscribe("left", { qos: 1, durable: true });
    await third.publish("left", "c", { qos: 1 });
    assert.equal((await rest.receive({ timeoutMs: 60_000 })).text(), "c");
    await third.unsubscribe("left");
  });

  test("two subscriptions that both match have the message once each, and both acknowledge it", async () => {
    const client = await open();
    const [one, all] = [await client.subscribe("both/1", { qos: 1 }), await client.subscribe("both/#", { qos: 1 })];
    for (let i = 0; i < 120; i++) await client.publish("both/1", String(i), { qos: 1 });
    const numbers = Array.from({ length: 120 }, (_, i) => String(i));
    const found = await Promise.all([take(one, 120), take(all, 120)]);
    assert.deepEqual(found.map(texts), [numbers, numbers]);
  });

  test("members of a group share the messages", async () => {
    const workers = await Promise.all([1, 2].map(() => open()));
    const queues = await Promise.all(workers.map((worker) => worker.subscribe("jobs", { qos: 1, group: "g" })));
    for (let i = 0; i < 40; i++) await workers[0].publish("jobs", String(i), { qos: 1 });
    const found = [];
    const read = async (queue) => {
      for await (const message of queue) found.push(message.text());
    };
    const reading = queues.map(read);
    await until(() => found.length === 40, "the group has all messages");
    await Promise.all(queues.map((queue) => queue.close()));
    await Promise.all(reading);
    assert.deepEqual(found.map(Number).sort((a, b) => a - b), Array.from({ length: 40 }, (_, i) => i));
  });
});

describe("outages", () => {
  test("a durable subscription gets what was published while the client was away, in order", async () => {
    const states = [];
    const reader = await open(proxy.url, { clientId: "away", onState: (state) => states.push(state) });
    const messages = await reader.subscribe("away", { qos: 1, durable: true });
    const writer = await open();
    proxy.refuses = true;
    proxy.cut();
    await until(() => reader.state === "disconnected", "the client is disconnected");
    for (let i = 0; i < 100; i++) await writer.publish("away", String(i), { qos: 1 });
    proxy.refuses = false;
    assert.deepEqual(texts(await take(messages, 100)), Array.from({ length: 100 }, (_, i) => String(i)));
    assert.deepEqual([states[0], states[1], states.at(-1)], ["connected", "disconnected", "connected"]);
    await reader.unsubscribe("away");
  });

  test("no QoS 1 publish is lost over cut connections; each message that comes twice was announced by its receipt", async () => {
    const reader = await open();
    const messages = await reader.subscribe("cut", { qos: 1, durable: false });
    const writer = await open(proxy.url);
    const resent = new Set();
    const publishing = Array.from({ length: 600 }, (_, i) => i).map(async (i) => {
      const receipt = await writer.publish("cut", String(i), { qos: 1, timeoutMs: 60_000 });
      if (receipt.resent) resent.add(String(i));
    });
    const counts = new Map();
    const reading = (async () => {
      for await (const message of messages) counts.set(message.text(), (counts.get(message.text()) ?? 0) + 1);
    })();
    for (let i = 0; i < 5; i++) {
      proxy.deaf = i % 2 === 1; // answers are lost: the messages are stored
      await until(() => writer.unanswered > 0 || counts.size === 600, "something is on its way");
      proxy.cut();
      proxy.deaf = false;
      await until(() => writer.state === "connected" || counts.size === 600, "the client is back");
    }
    await Promise.all(publishing);
    await until(() => counts.size === 600, "all messages are there");
    await messages.close();
    await reading;
    const twice = [...counts].filter(([, count]) => count > 1).map(([text]) => text);
    assert.ok(twice.every((text) => resent.has(text)), `${twice} came twice, resent were ${[...resent]}`);
  });

  test("a publish whose answer is lost is stored twice, and its receipt says resent; with resend off it fails instead", async () => {
    const reader = await open();
    const messages = await reader.subscribe("answer", { qos: 1 });
    const writer = await open(proxy.url);
    proxy.deaf = true;
    const twice = writer.publish("answer", "twice", { qos: 1 });
    const once = writer.publish("answer", "once", { qos: 1, resend: false });
    once.catch(() => {});
    assert.deepEqual(texts(await take(messages, 2)), ["twice", "once"]);
    proxy.cut();
    proxy.deaf = false;
    await assert.rejects(once, blipmq.Disconnected);
    assert.equal((await twice).resent, true);
    assert.equal((await messages.receive({ timeoutMs: 60_000 })).text(), "twice");
  });

  test("subscriptions of QoS 0 come back, and publishes wait for the connection", async () => {
    const client = await open(proxy.url);
    const messages = await client.subscribe("back");
    proxy.cut();
    await until(() => client.state !== "connected", "the cut is seen");
    await client.publish("back", "after", { timeoutMs: 60_000 });
    assert.equal((await messages.receive({ timeoutMs: 60_000 })).text(), "after");
  });

  test("the restart of the broker is survived, also by a killed one's durable subscription", async () => {
    const other = await startBroker();
    try {
      const client = await open(other.url, { clientId: "restart" });
      const messages = await client.subscribe("restart", { qos: 1, durable: true });
      await client.publish("restart", "1", { qos: 1 });
      await other.stop("SIGKILL");
      const publishing = client.publish("restart", "2", { qos: 1, timeoutMs: 60_000 });
      await until(() => client.state === "disconnected", "the end is seen");
      await other.again();
      await publishing;
      const found = new Set();
      for await (const message of messages) {
        found.add(message.text());
        if (found.size === 2) break;
      }
      assert.deepEqual([...found].sort(), ["1", "2"]);
      await client.close();
    } finally {
      await other.end();
    }
  });

  test("a silent connection is given up after two keep-alive intervals", async () => {
    const client = await open(proxy.url, { keepaliveMs: 1000 });
    const before = proxy.answers;
    await until(() => proxy.answers >= before + 3, "PING is sent and answered");
    proxy.deaf = true;
    await until(() => client.state !== "connected", "the silence is noticed");
    proxy.deaf = false;
    proxy.cut();
    await until(() => client.state === "connected", "the client is back");
  });

  test("without reconnect the first loss closes the client and ends its subscriptions with the error", async () => {
    const client = await open(proxy.url, { reconnect: false });
    const messages = await client.subscribe("once");
    const waiting = messages.receive({ timeoutMs: 60_000 });
    proxy.cut();
    await assert.rejects(waiting, blipmq.Disconnected);
    assert.equal(client.state, "closed");
    await assert.rejects(client.publish("a", "b"), blipmq.Disconnected);
  });
});

describe("limits", () => {
  test("a slow reader of QoS 0 loses the oldest or the newest, counted, and harms no other subscription", async () => {
    const client = await open();
    const oldest = await client.subscribe("flood/oldest", { queueMessages: 10 });
    const newest = await client.subscribe("flood/newest", { queueMessages: 10, overflow: "drop-newest" });
    const bytes = await client.subscribe("flood/bytes", { queueBytes: 10 });
    const all = await client.subscribe("flood/#");
    for (let i = 0; i < 50; i++) {
      for (const topic of ["oldest", "newest", "bytes"]) await client.publish(`flood/${topic}`, String(10 + i));
    }
    assert.equal((await take(all, 150)).length, 150);
    assert.deepEqual(texts(await take(oldest, 10)), Array.from({ length: 10 }, (_, i) => String(50 + i)));
    assert.deepEqual(texts(await take(newest, 10)), Array.from({ length: 10 }, (_, i) => String(10 + i)));
    assert.deepEqual(texts(await take(bytes, 5)), ["55", "56", "57", "58", "59"]);
    assert.deepEqual([oldest.dropped, newest.dropped, bytes.dropped, all.dropped], [40, 40, 45, 0]);
  });

  test("with overflow end the subscription ends with QueueFull after what it has", async () => {
    const client = await open();
    const messages = await client.subscribe("end", { queueMessages: 2, overflow: "end" });
    for (let i = 0; i < 3; i++) await client.publish("end", String(i));
    await until(() => messages.ended, "the subscription ends");
    assert.deepEqual(texts(await take(messages, 2)), ["0", "1"]);
    await assert.rejects(messages.receive(), blipmq.QueueFull);
  });

  test("publishes wait when the WebSocket's buffer is full, in a bounded queue", async () => {
    const client = await open(proxy.url, { sendBufferBytes: 100_000, queuePublishes: 20 });
    const reader = await open();
    const messages = await reader.subscribe("full");
    proxy.stall(true);
    const payload = new Uint8Array(500_000);
    const published = [];
    const refused = await until(async () => {
      const attempt = client.publish("full", payload, { timeoutMs: 60_000 });
      published.push(attempt);
      return Promise.race([attempt.then(() => null, (error) => error), new Promise((resolve) => setTimeout(resolve, 1))]);
    }, "the queue is full");
    assert.ok(refused instanceof blipmq.QueueFull, refused);
    assert.equal(client.waiting, 20);
    await assert.rejects(client.publish("full", "x", { timeoutMs: 10 }), blipmq.QueueFull);
    published.pop();
    proxy.stall(false);
    await Promise.all(published);
    for (let i = 0; i < published.length; i++) assert.equal((await messages.receive({ timeoutMs: 60_000 })).payload.length, 500_000);
  });

  test("an operation ends after its timeout, or at once with its signal's reason", async () => {
    const client = await open(proxy.url);
    const messages = await client.subscribe("slow");
    await assert.rejects(messages.receive({ timeoutMs: 5 }), blipmq.TimedOut);
    const stop = new AbortController();
    const waiting = messages.receive({ signal: stop.signal });
    stop.abort(new Error("enough"));
    await assert.rejects(waiting, /^Error: enough$/);
    await assert.rejects(messages.receive({ signal: AbortSignal.abort(new Error("before")) }), /^Error: before$/);
    proxy.deaf = true;
    await assert.rejects(client.ping({ timeoutMs: 20 }), blipmq.TimedOut);
    await assert.rejects(client.publish("slow", "x", { qos: 1, timeoutMs: 20 }), blipmq.TimedOut);
    await assert.rejects(client.publish("slow", "x", { qos: 1, signal: AbortSignal.timeout(20) }), { name: "TimeoutError" });
    assert.equal(client.unanswered, 0);
    proxy.refuses = true;
    proxy.cut();
    await until(() => client.state === "disconnected", "the cut is seen");
    await assert.rejects(client.publish("slow", "x", { timeoutMs: 20 }), blipmq.Disconnected);
    await assert.rejects(client.subscribe("slow/2", { timeoutMs: 20 }), blipmq.Disconnected);
    assert.equal(client.waiting, 0);
  });

  test("a publish that the broker finds too long fails alone", async () => {
    const client = await open();
    const long = client.publish("long", new Uint8Array(2_000_000), { qos: 1 });
    const short = client.publish("long", "short", { qos: 1 });
    await assert.rejects(long, { name: "Refused", code: 413 });
    assert.ok((await short).id > 0n);
  });
});

describe("errors", () => {
  const bad = [
    ["a topic with a wildcard", (client) => client.publish("a/#", "x")],
    ["an empty topic", (client) => client.publish("", "x")],
    ["a payload that is an object", (client) => client.publish("a", { a: 1 })],
    ["QoS 2", (client) => client.publish("a", "x", { qos: 2 })],
    ["a negative time to live", (client) => client.publish("a", "x", { ttlMs: -1 })],
    ["a filter of both kinds", (client) => client.subscribe("a/+/b.*")],
    ["durable without QoS 1", (client) => client.subscribe("a", { durable: true })],
    ["durable without a clientId", (client) => client.subscribe("a", { durable: true, qos: 1 })],
    ["an unknown policy", (client) => client.subscribe("a", { overflow: "wait" })],
    ["a timeout that is a text", (client) => client.ping({ timeoutMs: "5" })],
  ];
  for (const [name, attempt] of bad) {
    test(`${name} is a UsageError`, async () => {
      await assert.rejects(attempt(await open()), blipmq.UsageError);
    });
  }

  test("a wrong URL is a UsageError, a port without a broker or WebSocket is Unreachable with the cause", async () => {
    for (const url of ["localhost", "http://localhost/", "ws://"]) await assert.rejects(connect(url), blipmq.UsageError);
    await assert.rejects(connect("ws://127.0.0.1:1"), (error) => error instanceof blipmq.Unreachable && /ECONNREFUSED/.test(error.message));
    await assert.rejects(connect(broker.url.replace("/blipmq", "/other")), (error) => error instanceof blipmq.Unreachable && /404/.test(error.message));
    await assert.rejects(connect(`ws://${broker.address}/blipmq`, { timeoutMs: 5000 }), blipmq.BlipMQError);
  });

  test("connect waits for a broker that starts later, and stops with its signal", async () => {
    proxy.refuses = true;
    const waiting = open(proxy.url, { waitMs: Infinity });
    await until(() => proxy.accepted > 0, "it tries");
    proxy.refuses = false;
    assert.equal((await waiting).state, "connected");
    proxy.refuses = true;
    await assert.rejects(connect(proxy.url, { waitMs: Infinity, signal: AbortSignal.timeout(50) }), { name: "TimeoutError" });
    await assert.rejects(connect(proxy.url, { waitMs: 50 }), blipmq.Unreachable);
  });

  test("with the same filter but other options, subscribe says so; a second one with the same shares it", async () => {
    const client = await open();
    const [one, two] = [await client.subscribe("same"), await client.subscribe("same")];
    await assert.rejects(client.subscribe("same", { qos: 1 }), blipmq.UsageError);
    await client.publish("same", "x");
    assert.deepEqual(texts([await one.receive(), await two.receive()]), ["x", "x"]);
    await one.close();
    await client.publish("same", "y");
    assert.equal((await two.receive({ timeoutMs: 60_000 })).text(), "y");
    assert.deepEqual(await one[Symbol.asyncIterator]().next(), { done: true, value: undefined });
    await assert.rejects(one.receive(), blipmq.Disconnected);
    await assert.rejects(client.unsubscribe("never"), { code: 404 });
  });

  test("a newer client with the same clientId takes over, and the older one stays closed", async () => {
    const first = await open(undefined, { clientId: "same" });
    const messages = await first.subscribe("mine");
    const waiting = assert.rejects(messages.receive({ timeoutMs: 60_000 }), { code: 409 });
    await open(undefined, { clientId: "same" });
    await waiting;
    assert.equal(first.state, "closed");
  });

  test("close answers what was sent before, and ends loops without an error", async () => {
    const client = await open();
    const messages = await client.subscribe("last");
    const reading = (async () => {
      for await (const message of messages) assert.ok(message);
    })();
    const published = client.publish("last", "x", { qos: 1 });
    await client.close();
    assert.ok((await published).id > 0n);
    await reading;
    await client.close();
    await assert.rejects(client.ping(), blipmq.Disconnected);
  });

  test("info has the broker's state", async () => {
    const client = await open();
    assert.equal((await client.info()).websocket.address, broker.websocket);
    assert.ok((await client.ping()) >= 0);
  });
});

describe("keys", () => {
  let keyed;
  before(async () => {
    keyed = await startBroker({ auth: `api_keys = ["a-key-of-the-tests-1"]` });
  });
  after(() => keyed.end());

  test("without a key and with a wrong one there is no connection, and no second attempt", async () => {
    await assert.rejects(connect(keyed.url, { waitMs: Infinity }), { name: "NotAllowed", code: 401 });
    await assert.rejects(connect(keyed.url, { apiKey: "another-key-of-tests", waitMs: Infinity }), (error) => error.code === 401 && error.hint !== "" && error.reason !== "");
    assert.equal((await open(keyed.url, { apiKey: "a-key-of-the-tests-1" })).state, "connected");
  });
});

describe("wss", () => {
  let secure, ca;
  before(async () => {
    const folder = given("JS_TEST_CERTIFICATES");
    ca = readFileSync(`${folder}/ca.pem`);
    secure = await startBroker({
      server: 'tls_bind_addr = "127.0.0.1:0"',
      tls: `cert_file = ${JSON.stringify(`${folder}/server.pem`)}\nkey_file = ${JSON.stringify(`${folder}/server.key`)}`,
    });
  });
  after(() => secure.end());

  test("messages go over wss with the given authority", async () => {
    const client = await open(secure.secureUrl, { tls: { ca } });
    const messages = await client.subscribe("secret", { qos: 1 });
    await client.publish("secret", new Uint8Array(300_000), { qos: 1 });
    assert.equal((await messages.receive({ timeoutMs: 60_000 })).payload.length, 300_000);
  });

  test("a certificate of an unknown authority is refused", async () => {
    await assert.rejects(connect(secure.secureUrl), (error) => error instanceof blipmq.Unreachable && /certificate/.test(error.message));
  });
});
