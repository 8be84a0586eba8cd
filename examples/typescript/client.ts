// A client in TypeScript, generated from the schema of the protocol. It subscribes, publishes two messages, prints and
// acknowledges all it receives, and ends after COUNT messages. Run it in this folder with a broker that has a WAL:
//   flatc --ts --gen-object-api ../../native/proto/blip.fbs
//   deno run --allow-net client.ts [HOST:PORT] [COUNT]
import { Buffer } from "node:buffer";
import { connect } from "node:net";
import { argv } from "node:process";
import { Builder, ByteBuffer } from "flatbuffers";
import { Action, ClientCommandT, FrameType, Message, Reply, SubAck } from "./blip.ts";

const [address = "127.0.0.1:7878", count = "2"] = argv.slice(2);
const [host, port] = address.split(":");
const socket = connect(Number(port), host);
let left = Number(count), input = Buffer.alloc(0);

function send(fields: Partial<ClientCommandT>) {
  const builder = new Builder(256);
  builder.finish(Object.assign(new ClientCommandT(), fields).pack(builder));
  const length = Buffer.alloc(4);
  length.writeUInt32BE(builder.asUint8Array().length);
  socket.write(Buffer.concat([length, builder.asUint8Array()]));
}

function headers(properties: Buffer): string { // user properties: 0x26, then name and value, each behind its size
  const found: string[] = [];
  for (let at = 0; properties[at] === 0x26;) {
    const name = at + 3, value = name + properties.readUInt16BE(at + 1);
    at = value + 2 + properties.readUInt16BE(value);
    found.push(`${properties.toString("utf8", name, value)}=${properties.toString("utf8", value + 2, at)}`);
  }
  return found.join(" ");
}

function received(type: FrameType, body: ByteBuffer) {
  if (type === FrameType.MESSAGE) {
    const message = Message.getRootAsMessage(body);
    const payload = Buffer.from(message.payloadArray() ?? []), beside = headers(Buffer.from(message.propertiesArray() ?? []));
    console.log(`${message.topic()} qos=${message.qos()}: ${payload} ${beside}`.trim());
    if (message.qos() === 1) send({ action: Action.ACK, seq: message.id() });
    if (--left === 0) send({ action: Action.QUIT });
  } else {
    const answer = type === FrameType.SUBACK ? SubAck.getRootAsSubAck(body) : Reply.getRootAsReply(body);
    if (answer.code() !== 0) throw new Error(`request ${answer.seq()} was refused with ${answer.code()}`);
    console.log(`answer ${answer.seq()}`, answer instanceof Reply ? `subscriptions=${answer.subscriptions()}` : `topic=${answer.topic()}`);
  }
}

send({ action: Action.HELLO, seq: 1n, protocol: 1, clientId: "typescript" });
send({ action: Action.SUB, seq: 2n, topic: "demo/#", qos: 1, durable: true });
send({ action: Action.SUB, seq: 3n, topic: "$dlq/#", qos: 1, durable: true });
send({ action: Action.PUB, topic: "demo/fast", payload: [...Buffer.from("may be lost")] });
send({ action: Action.PUB, seq: 4n, topic: "demo/safe", payload: [...Buffer.from("is stored")], qos: 1 });
for await (const chunk of socket) {
  for (input = Buffer.concat([input, chunk]); input.length >= 4 && input.length >= 4 + input.readUInt32BE(0);) {
    const end = 4 + input.readUInt32BE(0);
    received(input[4], new ByteBuffer(new Uint8Array(input.subarray(5, end))));
    input = input.subarray(end);
  }
}
console.log("closed");
