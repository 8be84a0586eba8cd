// The client in a browser ($JS_TEST_BROWSER, a headless Chromium): a page loads the modules as they stand and reports what it saw.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { createServer } from "node:http";
import { once } from "node:events";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { given, startBroker, startProxy, until } from "./broker.js";

const SOURCE = new URL("../src/", import.meta.url);
const PAGE = `<!doctype html><meta charset="utf-8"><script type="module">
const told = {error: null, window: []};
window.onerror = (text) => told.window.push(String(text));
window.onunhandledrejection = ({ reason }) => told.window.push(String(reason));
try {
  const { run } = await import("/run.js");
  told.result = await run(await import("/src/browser.js"));
} catch (error) {
  told.error = String(error?.stack ?? error);
}
await fetch("/told", { method: "POST", body: JSON.stringify(told) });
</script>`;

let site, origin, script, told, broker, proxy, folder;

/** Run the body of an async function of (blipmq, url) in a page; returns its result. */
async function inPage(body, url) {
  script = `export async function run(blipmq) { const url = ${JSON.stringify(url)}; ${body} }`;
  told = undefined;
  const child = spawn(given("JS_TEST_BROWSER"), [
    "--no-sandbox", "--disable-gpu", "--ignore-certificate-errors", "--remote-debugging-port=0", `--user-data-dir=${folder}`, `${origin}/`,
  ], { stdio: "ignore", env: { ...process.env, HOME: folder } });
  const ended = once(child, "exit");
  try {
    await until(() => told || child.exitCode !== null, "the page has reported");
  } finally {
    child.kill();
    await ended;
  }
  assert.equal(told.error, null);
  assert.deepEqual(told.window, []);
  return told.result;
}

before(async () => {
  folder = await mkdtemp(join(tmpdir(), "blipmq-browser-"));
  site = createServer(async (request, response) => {
    if (request.method === "POST") {
      let body = "";
      for await (const part of request) body += part;
      if (request.url === "/told") told = JSON.parse(body);
      if (request.url === "/cut") proxy.cut();
      return response.writeHead(204).end();
    }
    const [type, text] = request.url === "/" ? ["text/html", PAGE] : request.url === "/run.js" ? ["text/javascript", script]
      : request.url.startsWith("/src/") ? ["text/javascript", await readFile(new URL(request.url.slice(5), SOURCE))] : ["", ""];
    response.writeHead(type ? 200 : 404, { "Content-Type": type }).end(text);
  });
  site.listen(0, "127.0.0.1");
  await once(site, "listening");
  origin = `http://127.0.0.1:${site.address().port}`;
  const certificates = given("JS_TEST_CERTIFICATES");
  broker = await startBroker({
    server: `ws_origins = ["${origin}"]\ntls_bind_addr = "127.0.0.1:0"`,
    tls: `cert_file = ${JSON.stringify(`${certificates}/server.pem`)}\nkey_file = ${JSON.stringify(`${certificates}/server.key`)}`,
  });
  proxy = await startProxy(broker);
});
after(async () => {
  await proxy?.end();
  await broker?.end();
  site?.close();
  site?.closeAllConnections();
  await rm(folder, { recursive: true, force: true, maxRetries: 20, retryDelay: 100 });
});

describe("in a browser", () => {
  test("messages of all sizes and both QoS come in order, through a cut connection", async () => {
    const result = await inPage(`
      const states = [];
      const client = await blipmq.connect(url, { clientId: "page", onState: (state) => states.push(state) });
      const messages = await client.subscribe("page/#", { qos: 1, durable: true });
      const sizes = [0, 100, 65_536, 1_000_000];
      for (const size of sizes) await client.publish("page/size", new Uint8Array(size).fill(7));
      const first = [];
      for (const size of sizes) first.push((await messages.receive({ timeoutMs: 60_000 })).payload.length);
      const receipt = await client.publish("page/safe", "before", { qos: 1 });
      await fetch("/cut", { method: "POST" });
      while (client.state === "connected") await new Promise((resolve) => setTimeout(resolve, 1));
      await client.publish("page/safe", "after é", { qos: 1, timeoutMs: 60_000 });
      const texts = [];
      for await (const message of messages) {
        texts.push(message.text());
        if (texts.includes("after é")) break;
      }
      await client.unsubscribe("page/#");
      await client.close();
      return { first, subscriptions: receipt.subscriptions, texts, states };
    `, proxy.url);
    assert.deepEqual(result.first, [0, 100, 65_536, 1_000_000]);
    assert.equal(result.subscriptions, 1);
    assert.deepEqual(result.texts, ["before", "after é"]);
    assert.deepEqual(result.states.filter((state) => state !== "connecting"), ["connected", "disconnected", "connected", "closed"]);
  });

  test("a path that is not served is Unreachable, with a hint about origins", async () => {
    const result = await inPage(`
      return await blipmq.connect(url).then(() => null, (error) => ({ name: error.name, hint: error.hint, kind: error instanceof blipmq.Unreachable }));
    `, broker.url.replace("/blipmq", "/elsewhere"));
    assert.deepEqual([result.name, result.kind], ["Unreachable", true]);
    assert.match(result.hint, /ws_origins/);
  });

  test("messages go over wss", async () => {
    const result = await inPage(`
      const client = await blipmq.connect(url);
      const messages = await client.subscribe("secret", { qos: 1 });
      await client.publish("secret", "over TLS", { qos: 1 });
      return (await messages.receive({ timeoutMs: 60_000 })).text();
    `, broker.secureUrl);
    assert.equal(result, "over TLS");
  });
});
