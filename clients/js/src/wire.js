// The frames of BlipMQ's protocol: docs/PROTOCOL.md and native/proto/blip.fbs describe them.
//
//   client to broker   u32 big-endian N | N bytes: FlatBuffer, root ClientCommand
//   broker to client   u32 big-endian N | u8 type | N-1 bytes: FlatBuffer, root SubAck (0), Message (1) or Reply (2)
//
// Invariant: each offset, length and string of a frame is used only after it is shown to lie inside the frame; every violation is a
// ProtocolError. The bytes of a command are those that blipmq/wire/command.py writes.
import { ProtocolError } from "./errors.js";

export const PUB = 0, SUB = 1, UNSUB = 2, QUIT = 3, HELLO = 4, ACK = 5, PING = 6, INFO = 7;
export const SUBACK = 0, MESSAGE = 1, REPLY = 2;
export const PROTOCOL = 1;
const FRAME_BYTES_MAX = 64 << 20;

const encoder = new TextEncoder();
const strict = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
const lenient = new TextDecoder("utf-8", { ignoreBOM: true });

/**
 * @typedef {object} Command
 * @property {number} action
 * @property {string} [topic]
 * @property {Uint8Array} [payload]
 * @property {number | bigint} [ttlMs]
 * @property {number} [qos]
 * @property {number | bigint} [seq]
 * @property {string} [clientId]
 * @property {string} [apiKey]
 * @property {number} [protocol]
 * @property {boolean} [durable]
 * @property {string} [group]
 * @property {number} [keepaliveMs]
 * @property {boolean} [keepDurable]
 */

/**
 * Scalars of ClientCommand: slot, field and size in bytes, widest first.
 * @type {[number, keyof Command, number][]}
 */
const SCALARS = [
  [3, "ttlMs", 8], [5, "seq", 8], [16, "keepaliveMs", 8], [8, "protocol", 2],
  [4, "qos", 1], [9, "durable", 1], [17, "keepDurable", 1], [0, "action", 1],
];
/** @type {[number, "topic" | "clientId" | "apiKey" | "group"][]} */
const TEXTS = [[1, "topic"], [6, "clientId"], [7, "apiKey"], [10, "group"]];

/**
 * Encode one command as a frame with its length. Fields that are absent, 0, false or "" take no space.
 * @param {Command} command
 * @returns {Uint8Array<ArrayBuffer>}
 */
export function encodeCommand(command) {
  const scalars = SCALARS.filter(([, name]) => command[name]);
  /** @type {[number, Uint8Array, number][]} slot, bytes, size of the terminator */
  const vectors = [];
  for (const [slot, name] of TEXTS) {
    if (command[name]) vectors.push([slot, encoder.encode(command[name]), 1]);
  }
  if (command.payload) vectors.push([2, command.payload, 0]);

  const slots = 1 + Math.max(-1, ...scalars.map(([slot]) => slot), ...vectors.map(([slot]) => slot));
  const vtableBytes = 4 + 2 * slots;
  // The widest fields follow the first four bytes of the table, and are aligned to eight bytes.
  const table = 4 + vtableBytes + (-vtableBytes & 7);
  /** @type {Map<number, number>} */
  const offsets = new Map();
  let at = 4;
  for (const [slot, , bytes] of scalars) if (bytes === 8) { offsets.set(slot, at); at += 8; }
  for (const [slot] of vectors) { offsets.set(slot, at); at += 4; }
  for (const [slot, , bytes] of scalars) if (bytes < 8) { offsets.set(slot, at); at += bytes; }
  let size = table + at;
  for (const [, data, terminator] of vectors) size += (-size & 3) + 4 + data.length + terminator;

  const frame = new Uint8Array(4 + size);
  const view = new DataView(frame.buffer, 4);
  new DataView(frame.buffer).setUint32(0, size);
  view.setUint32(0, table, true);
  view.setUint16(4, vtableBytes, true);
  view.setUint16(6, at, true);
  view.setInt32(table, table - 4, true);
  for (const [slot, offset] of offsets) view.setUint16(8 + 2 * slot, offset, true);
  for (const [slot, name, bytes] of scalars) {
    const place = table + /** @type {number} */ (offsets.get(slot));
    const value = /** @type {number | bigint | boolean} */ (command[name]);
    if (bytes === 8) view.setBigUint64(place, BigInt(value), true);
    else if (bytes === 2) view.setUint16(place, Number(value), true);
    else view.setUint8(place, Number(value));
  }
  let end = table + at;
  for (const [slot, data, terminator] of vectors) {
    end += -end & 3;
    const place = table + /** @type {number} */ (offsets.get(slot));
    view.setUint32(place, end - place, true);
    view.setUint32(end, data.length, true);
    frame.set(data, 4 + end + 4);
    end += 4 + data.length + terminator;
  }
  return frame;
}

/** @param {string} what */
function broken(what) {
  return new ProtocolError(`A frame does not verify: ${what}. The peer is probably not BlipMQ; check the address.`, {
    hint: "Check the address and the port.",
  });
}

/** The root table of one FlatBuffer: the bytes [start, end) of a buffer. Positions are relative to `start`. */
class Table {
  /** @param {Uint8Array} bytes @param {number} start @param {number} end */
  constructor(bytes, start, end) {
    const size = end - start;
    this.bytes = bytes.subarray(start, end);
    this.view = new DataView(bytes.buffer, bytes.byteOffset + start, size);
    if (size < 8) throw broken(`${size} bytes are too short for a table`);
    this.table = this.view.getUint32(0, true);
    if (this.table < 4 || this.table + 4 > size) throw broken("root offset out of range");
    this.vtable = this.table - this.view.getInt32(this.table, true);
    if (this.vtable < 0 || this.vtable + 4 > size) throw broken("vtable out of range");
    const vtableBytes = this.view.getUint16(this.vtable, true);
    const tableBytes = this.view.getUint16(this.vtable + 2, true);
    if (vtableBytes < 4 || vtableBytes % 2 || this.vtable + vtableBytes > size) throw broken("vtable length");
    if (tableBytes < 4 || this.table + tableBytes > size) throw broken("table out of range");
    this.slots = vtableBytes / 2 - 2;
    this.end = this.table + tableBytes;
  }

  /** Where the field is, 0 if it is absent. @param {number} slot @param {number} width */
  at(slot, width) {
    const offset = slot < this.slots ? this.view.getUint16(this.vtable + 4 + 2 * slot, true) : 0;
    if (offset === 0) return 0;
    const at = this.table + offset;
    if (offset < 4 || at + width > this.end) throw broken(`field ${slot} out of range`);
    return at;
  }

  /** @param {number} slot */
  u8(slot) {
    const at = this.at(slot, 1);
    return at ? this.view.getUint8(at) : 0;
  }

  /** @param {number} slot */
  u16(slot) {
    const at = this.at(slot, 2);
    return at ? this.view.getUint16(at, true) : 0;
  }

  /** A u64; undefined if it is absent. @param {number} slot */
  u64(slot) {
    const at = this.at(slot, 8);
    return at ? this.view.getBigUint64(at, true) : undefined;
  }

  /** A u64 as a number: exact below 2 to the power of 53. @param {number} slot */
  number(slot) {
    const at = this.at(slot, 8);
    return at ? this.view.getUint32(at + 4, true) * 0x1_0000_0000 + this.view.getUint32(at, true) : 0;
  }

  /** A byte vector without copying it; undefined if it is absent. @param {number} slot @param {number} [terminator] */
  vector(slot, terminator = 0) {
    const at = this.at(slot, 4);
    if (at === 0) return undefined;
    const offset = this.view.getUint32(at, true);
    const size = this.bytes.length;
    if (offset === 0 || at + offset + 4 > size) throw broken(`offset of field ${slot} out of range`);
    const begin = at + offset + 4;
    const end = begin + this.view.getUint32(begin - 4, true);
    if (end + terminator > size) throw broken(`length of field ${slot} out of range`);
    if (terminator && this.bytes[end] !== 0) throw broken(`text of field ${slot} is not terminated`);
    return this.bytes.subarray(begin, end);
  }

  /** A copy of a byte vector: it does not keep the received data alive. @param {number} slot */
  copy(slot) {
    return new Uint8Array(this.vector(slot) ?? []);
  }

  /** @param {number} slot */
  text(slot) {
    const data = this.vector(slot, 1);
    if (data === undefined) return "";
    try {
      return strict.decode(data);
    } catch {
      throw broken(`text of field ${slot} is not UTF-8`);
    }
  }
}

/** @typedef {{type: 0, topic: string, text: string, seq: number, code: number}} SubAck */
/**
 * @typedef {{type: 2, seq: number, code: number, text: string, id: bigint, payload: Uint8Array, subscriptions: number | undefined,
 *   keepaliveMs: number}} Reply
 */

/** A message, as a subscriber gets it. */
export class Message {
  /** @param {Uint8Array} bytes @param {number} [start] @param {number} [end] @internal */
  constructor(bytes, start = 0, end = bytes.length) {
    const table = new Table(bytes, start, end);
    /** The broker's number of the message: it grows, and is the same after a reconnect. */
    this.id = table.u64(0) ?? 0n;
    this.topic = table.text(4);
    this.payload = table.copy(1);
    /** When the broker accepted it: milliseconds since 1970, UTC. */
    this.timestampMs = table.number(2);
    /** Time to live in milliseconds from then on; 0: it does not expire. */
    this.ttlMs = table.number(3);
    this.qos = table.u8(5);
    /** It may have been delivered before. */
    this.redelivered = table.u8(6) !== 0;
    /** Properties in the format of MQTT 5; `headers` has the user properties among them. */
    this.properties = table.copy(8);
  }

  /** The payload as text; U+FFFD stands for bytes that are not UTF-8. */
  text() {
    return lenient.decode(this.payload);
  }

  /** The payload as JSON. Throws SyntaxError. @returns {any} */
  json() {
    return JSON.parse(this.text());
  }

  /** The user properties; a dead letter has `reason`, `topic`, `id` and `deliveries`. @returns {Record<string, string>} */
  get headers() {
    return userProperties(this.properties);
  }

  /** For JSON.stringify: the payload as text, the id as a string of digits. */
  toJSON() {
    const { topic, timestampMs, ttlMs, qos, redelivered, headers } = this;
    return { id: String(this.id), topic, payload: this.text(), timestampMs, ttlMs, qos, redelivered, headers };
  }
}

/**
 * Sizes of the values of other properties of MQTT 5; -1: a text, -2: a number of variable size.
 * @type {Record<number, number>}
 */
const SIZES = {
  0x01: 1, 0x17: 1, 0x19: 1, 0x24: 1, 0x25: 1, 0x28: 1, 0x29: 1, 0x2a: 1, 0x13: 2, 0x21: 2, 0x22: 2, 0x23: 2,
  0x02: 4, 0x11: 4, 0x18: 4, 0x27: 4, 0x03: -1, 0x08: -1, 0x09: -1, 0x12: -1, 0x15: -1, 0x16: -1, 0x1a: -1, 0x1c: -1, 0x1f: -1, 0x0b: -2,
};

/**
 * Names and values of user properties. What follows the first invalid byte is left out.
 * @param {Uint8Array} data
 */
export function userProperties(data) {
  /** @type {Record<string, string>} */
  const found = Object.create(null);
  let at = 0;
  const part = () => {
    const end = at + 2 + (data[at] << 8 | data[at + 1]);
    if (!(end <= data.length)) throw new RangeError();
    const bytes = data.subarray(at + 2, end);
    at = end;
    return bytes;
  };
  try {
    while (at < data.length) {
      const kind = data[at++];
      if (kind === 0x26) {
        const [name, value] = [part(), part()];
        found[strict.decode(name)] = strict.decode(value);
      } else if (SIZES[kind] > 0) {
        at += SIZES[kind];
      } else if (SIZES[kind] === -1) {
        part();
      } else if (SIZES[kind] === -2) {
        while (data[at] & 0x80) at++;
        at++;
      } else {
        break;
      }
    }
  } catch {
    // the properties before this one count
  }
  return found;
}

/** @param {Uint8Array} bytes @param {number} start @param {number} end @returns {SubAck | Message | Reply} */
function decode(bytes, start, end) {
  const type = bytes[start];
  if (type === MESSAGE) return new Message(bytes, start + 1, end);
  if (type > REPLY) throw broken(`there is no frame type ${type}`);
  const table = new Table(bytes, start + 1, end);
  if (type === SUBACK) return { type, topic: table.text(0), text: table.text(1), seq: table.number(2), code: table.u16(3) };
  const subscriptions = table.u64(5);
  return {
    type: REPLY, seq: table.number(0), code: table.u16(1), text: table.text(2), id: table.u64(3) ?? 0n, payload: table.copy(4),
    subscriptions: subscriptions === undefined ? undefined : Number(subscriptions), keepaliveMs: table.number(6),
  };
}

/** Bytes in pieces of any size in, frames out. The bytes of an incomplete frame are copied once, when the rest has come. */
export class FrameReader {
  /** @type {Uint8Array[]} */
  #parts = [];
  #have = 0;
  #need = 4;
  #most;

  /** @param {number} [frameBytesMax] */
  constructor(frameBytesMax = FRAME_BYTES_MAX) {
    this.#most = frameBytesMax;
  }

  /**
   * Yields the complete frames. Throws ProtocolError at the first invalid one; the stream cannot be read any further then.
   * @param {Uint8Array} chunk
   * @returns {Generator<SubAck | Message | Reply, void, void>}
   */
  *feed(chunk) {
    let data = chunk;
    if (this.#have) {
      this.#parts.push(chunk);
      this.#have += chunk.length;
      if (this.#have < this.#need) return;
      data = new Uint8Array(this.#have);
      let at = 0;
      for (const part of this.#parts) { data.set(part, at); at += part.length; }
    }
    this.#parts = [];
    this.#have = 0;
    this.#need = 4;
    let at = 0;
    while (data.length - at >= 4) {
      const length = (data[at] * 0x100_0000) + (data[at + 1] << 16 | data[at + 2] << 8 | data[at + 3]);
      if (length < 2) throw broken(`a length of ${length}`);
      if (length > this.#most) throw broken(`a length of ${length} bytes is over the limit of ${this.#most}`);
      if (at + 4 + length > data.length) {
        this.#need = 4 + length;
        break;
      }
      yield decode(data, at + 4, at + 4 + length);
      at += 4 + length;
    }
    if (at < data.length) {
      this.#parts = [data.slice(at)];
      this.#have = data.length - at;
    }
  }
}
