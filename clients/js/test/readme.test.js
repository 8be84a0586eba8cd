// The programs of README.md, run as they stand; each must print the text below it.
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { readFileSync } from "node:fs";
import { mkdir, mkdtemp, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { startBroker } from "./broker.js";

const page = readFileSync(new URL("../README.md", import.meta.url), "utf8");
const programs = [...page.matchAll(/```js\n([^]*?)```(?:(?!```)[^])*?```text\n([^]*?)```/g)];
let broker, folder;

before(async () => {
  broker = await startBroker();
  folder = await mkdtemp(join(tmpdir(), "blipmq-readme-"));
  await mkdir(join(folder, "node_modules"));
  await symlink(fileURLToPath(new URL("..", import.meta.url)), join(folder, "node_modules", "blipmq"));
  await writeFile(join(folder, "package.json"), '{"type": "module"}');
});
after(async () => {
  await broker.end();
  await rm(folder, { recursive: true });
});

test("the page has programs, each with what it prints", () => {
  assert.equal(programs.length, page.split("```js\n").length - 1);
  assert.ok(programs.length >= 4);
});

for (const [index, [, program, output]] of programs.entries()) {
  test(`program ${index + 1} prints what the page says`, async () => {
    const file = join(folder, `program${index}.js`);
    await writeFile(file, program.replaceAll("ws://localhost:7881/blipmq", broker.url));
    const { stdout } = await promisify(execFile)(process.execPath, [file], { cwd: folder, timeout: 60_000 });
    assert.equal(stdout, output);
  });
}
