// A WebSocket (RFC 6455) over Node's http and https: Node 20 has none, and that of later versions takes no certificates.
//
// The payloads of data frames are one stream of bytes, so pieces are passed on as they come and no frame is held in memory.
// Invariant: what RFC 6455 forbids a server ends the connection; `ended` is called once.
import { randomBytes, createHash } from "node:crypto";
import { request as httpRequest } from "node:http";
import { request as httpsRequest } from "node:https";

const GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const BINARY = 2, CLOSE = 8, PING = 9, PONG = 10;
const ANSWER_BYTES_MAX = 500;

/**
 * @param {number} opcode @param {Uint8Array} data
 * @returns {Buffer}
 */
function frame(opcode, data) {
  const size = data.length;
  const head = size < 126 ? 2 : size < 65536 ? 4 : 10;
  const out = Buffer.allocUnsafe(head + 4 + size);
  out[0] = 0x80 | opcode;
  if (head === 2) {
    out[1] = 0x80 | size;
  } else if (head === 4) {
    out[1] = 0xfe;
    out.writeUInt16BE(size, 2);
  } else {
    out[1] = 0xff;
    out.writeBigUInt64BE(BigInt(size), 2);
  }
  const mask = randomBytes(4);
  out.set(mask, head);
  for (let at = 0, to = head + 4; at < size; at++) out[to + at] = data[at] ^ mask[at & 3];
  return out;
}

/** Reads the server's frames. Throws Error for what RFC 6455 forbids. */
export class Unwrapper {
  /** @type {Buffer} */
  #held = Buffer.alloc(0);
  #left = 0;
  #inMessage = false;
  #on;

  /** @param {{data(bytes: Buffer): void, control(opcode: number, bytes: Buffer): void}} on */
  constructor(on) {
    this.#on = on;
  }

  /** @param {Buffer} chunk */
  feed(chunk) {
    let data = this.#held.length ? Buffer.concat([this.#held, chunk]) : chunk;
    for (;;) {
      if (this.#left) {
        const part = data.subarray(0, this.#left);
        data = data.subarray(part.length);
        this.#left -= part.length;
        if (part.length) this.#on.data(part);
        if (this.#left) break;
      }
      const used = this.#head(data);
      if (!used) break;
      data = data.subarray(used);
    }
    this.#held = Buffer.from(data); // a copy: it does not keep the chunk alive
  }

  /** Take the head of a data frame, or a whole control frame. Returns its size; 0: more bytes are needed. @param {Buffer} data */
  #head(data) {
    if (data.length < 2) return 0;
    const first = data[0], opcode = first & 15, final = (first & 0x80) !== 0;
    let size = data[1], used = 2;
    if (first & 0x70 || size & 0x80) throw new Error("a frame of the server is masked, or uses an extension");
    if (size > 125) {
      used = size === 126 ? 4 : 10;
      if (data.length < used) return 0;
      size = size === 126 ? data.readUInt16BE(2) : data.readUInt32BE(2) * 0x1_0000_0000 + data.readUInt32BE(6);
    }
    if (opcode === 0 || opcode === BINARY) {
      if ((opcode === BINARY) === this.#inMessage || size > 2 ** 31) throw new Error("a frame of the server is out of order or too long");
      this.#inMessage = !final;
      this.#left = size;
      return used;
    }
    if (opcode < CLOSE || opcode > PONG || !final || size > 125) throw new Error(`a frame of the server has opcode ${opcode} and ${size} bytes`);
    if (data.length < used + size) return 0;
    this.#on.control(opcode, data.subarray(used, used + size));
    return used + size;
  }
}

/** @type {import("./browser_socket.js").OpenSocket} */
export function openSocket(url, events, tls) {
  const key = randomBytes(16).toString("base64");
  const expected = createHash("sha1").update(key + GUID).digest("base64");
  /** @type {import("node:net").Socket | undefined} */
  let stream;
  let over = false;
  let close = { code: 1006, reason: "" };

  /** @param {unknown} [error] */
  const end = (error) => {
    if (over) return;
    over = true;
    request.destroy();
    stream?.destroy();
    events.ended({ ...close, error });
  };
  const unwrapper = new Unwrapper({
    data: (bytes) => over || events.received(bytes),
    control: (opcode, bytes) => {
      if (opcode === PING) stream?.write(frame(PONG, bytes));
      if (opcode !== CLOSE) return;
      close = { code: bytes.length > 1 ? bytes.readUInt16BE(0) : 1005, reason: bytes.toString("utf8", 2) };
      stream?.end(frame(CLOSE, bytes.subarray(0, 2)));
    },
  });
  /** @param {Buffer} chunk */
  const feed = (chunk) => {
    try {
      unwrapper.feed(chunk);
    } catch (error) {
      end(error);
    }
  };

  const secure = url.startsWith("wss:");
  const request = (secure ? httpsRequest : httpRequest)(url.replace(/^ws/, "http"), {
    ...(secure ? tls : undefined),
    agent: false,
    headers: {
      Connection: "Upgrade", Upgrade: "websocket",
      "Sec-WebSocket-Key": key, "Sec-WebSocket-Version": "13", "Sec-WebSocket-Protocol": "blipmq",
    },
  });
  request.on("upgrade", (response, socket, head) => {
    const { "sec-websocket-accept": accept, "sec-websocket-protocol": protocol = "blipmq" } = response.headers;
    stream = /** @type {import("node:net").Socket} */ (socket);
    stream.on("error", end).on("close", () => end());
    if (over) return void stream.destroy();
    if (accept !== expected || protocol !== "blipmq" || response.headers["sec-websocket-extensions"]) {
      return end(new Error("its answer does not belong to this handshake; check for a proxy between client and broker"));
    }
    stream.setNoDelay(true);
    stream.setKeepAlive(true, 30_000);
    events.opened();
    if (head.length) feed(head);
    stream.on("data", feed).on("end", () => end());
  });
  request.on("response", (response) => {
    let text = "";
    response.setEncoding("utf8");
    response.on("data", (/** @type {string} */ part) => { text = (text + part).slice(0, ANSWER_BYTES_MAX); });
    response.on("close", () => end(new Error(`it refused the WebSocket: ${response.statusCode} ${text.split("\n")[0]}`.trim())));
  });
  request.on("error", end);
  request.end();
  return {
    send: (data) => void stream?.write(frame(BINARY, data)),
    abort: () => queueMicrotask(() => end()),
    buffered: () => stream?.writableLength ?? 0,
  };
}
