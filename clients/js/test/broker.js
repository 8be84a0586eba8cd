// A broker in a process of its own, and a proxy in front of it that can cut, stall and delay connections.
//
// tests/test_js_client.py of the project sets the variables of these tests.
import { spawn } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { createServer, connect as dial } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { once } from "node:events";

export const LIMIT_MS = 60_000;

/** The value of an environment variable that tests/test_js_client.py sets. */
export function given(name) {
  const value = process.env[name];
  if (!value) throw new Error(`$${name} is not set: run these tests with \`make test ARGS=tests/test_js_client.py\``);
  return value;
}

/** Resolves when `happened()` is true. */
export async function until(happened, what) {
  const end = Date.now() + LIMIT_MS;
  for (;;) {
    const value = await happened();
    if (value) return value;
    if (Date.now() > end) throw new Error(`in ${LIMIT_MS} ms it did not happen that ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

/** Starts a broker with a WAL and WebSocket; `sections` are lines of its configuration. `stop` ends it, `again` starts it anew. */
export async function startBroker(sections = {}) {
  const folder = await mkdtemp(join(tmpdir(), "blipmq-js-"));
  const command = given("JS_TEST_BLIPMQ").split(" ");
  let child, log = "";
  const broker = { url: "", secureUrl: "", log: () => log };

  async function start(bind, websocket) {
    const { server = "", ...others } = sections;
    const text = [
      `[server]\nbind_addr = "${bind}"\nws_bind_addr = "${websocket}"\n${server}`,
      `[wal]\ndirectory = ${JSON.stringify(join(folder, "wal"))}`,
      ...Object.entries(others).map(([name, lines]) => `[${name}]\n${lines}`),
    ].join("\n");
    await writeFile(join(folder, "blipmq.toml"), text);
    log = "";
    child = spawn(command[0], [...command.slice(1), "start", "--config", join(folder, "blipmq.toml")], { cwd: folder, stdio: ["ignore", "ignore", "pipe"] });
    child.stderr.setEncoding("utf8").on("data", (part) => { log += part; });
    const ready = await until(() => {
      if (child.exitCode !== null) throw new Error(`the broker ended: ${log}`);
      return / ready .*\n/.exec(log);
    }, "the broker is ready");
    const facts = Object.fromEntries([...ready[0].matchAll(/(\w+)=(\S+)/g)].map(([, name, value]) => [name, value]));
    broker.address = facts.address;
    broker.websocket = facts.websocket;
    broker.url = `ws://${facts.websocket}/blipmq`;
    if (facts.tls) broker.secureUrl = `wss://${facts.tls}/blipmq`;
  }

  broker.stop = async (signal = "SIGTERM") => {
    if (child.exitCode !== null || child.signalCode !== null) return;
    const ended = once(child, "exit");
    child.kill(signal);
    await ended;
  };
  broker.again = () => start(broker.address, broker.websocket);
  broker.end = async () => {
    await broker.stop();
    await rm(folder, { recursive: true });
  };
  await start("127.0.0.1:0", "127.0.0.1:0");
  return broker;
}

/** A proxy to the broker's WebSocket port. `cut` ends its connections; `deaf`: bytes of the broker are not passed on. */
export async function startProxy(broker) {
  const pairs = new Set();
  const proxy = { refuses: false, deaf: false, stalled: false, accepted: 0, answers: 0 };
  const server = createServer((near) => {
    proxy.accepted++;
    if (proxy.refuses) return void near.destroy();
    const [host, port] = broker.websocket.split(":");
    const far = dial(Number(port), host);
    const pair = [near, far];
    pairs.add(pair);
    for (const socket of pair) {
      socket.on("error", () => {});
      socket.on("close", () => {
        pairs.delete(pair);
        for (const other of pair) other.destroy();
      });
    }
    near.on("data", (data) => far.write(data));
    far.on("data", (data) => {
      proxy.answers++;
      if (!proxy.deaf) near.write(data);
    });
    if (proxy.stalled) near.pause();
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  proxy.url = `ws://127.0.0.1:${server.address().port}/blipmq`;
  proxy.cut = () => pairs.forEach((pair) => pair.forEach((socket) => socket.destroy()));
  proxy.stall = (on) => {
    proxy.stalled = on;
    pairs.forEach(([near]) => (on ? near.pause() : near.resume()));
  };
  proxy.end = async () => {
    proxy.cut();
    server.close();
  };
  return proxy;
}
