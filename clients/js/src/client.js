// The client: one WebSocket to one broker, that connects again by itself.
//
//   publish    -> [waits in the queue: no connection, or a full buffer or window] -> sent -> QoS 1: [unanswered] -> Receipt
//   subscribe  -> SUB, and again on each new connection
//
// Invariant: publishes are sent in the order of the calls. A QoS 1 publish is kept until it is answered, and sent again on the next
// connection in the same order; its Receipt says so. Only HELLO is sent before its answer.
import { Disconnected, ProtocolError, QueueFull, Refused, TimedOut, Unreachable, UsageError, refusal } from "./errors.js";
import { Subscription, checkNumber, waiting } from "./subscription.js";
import { checkFilter, checkIdentity, checkText, checkTopic, matches } from "./topics.js";
import * as wire from "./wire.js";

/** @typedef {import("./errors.js").BlipMQError} BlipMQError */
/** @typedef {import("./subscription.js").WaitOptions} WaitOptions */
/** @typedef {import("./subscription.js").SubscribeOptions} SubscribeOptions */
/** @typedef {import("./browser_socket.js").Socket} Socket */
/** @typedef {import("./browser_socket.js").OpenSocket} OpenSocket */
/** @typedef {wire.Message} Message */
/** @typedef {"connecting" | "connected" | "disconnected" | "closed"} State */

/**
 * @typedef {object} ConnectOptions
 * @property {string} [clientId] the durable name of this client
 * @property {string} [apiKey] the API key, if the broker asks for one
 * @property {number} [timeoutMs] how long an operation waits at most; 10,000 by default
 * @property {boolean} [reconnect] whether a lost connection is made again; true by default
 * @property {number} [waitMs] how long to try until the first connection is made; 0, one attempt, by default. Infinity: for ever
 * @property {AbortSignal} [signal] ends the attempts to make the first connection
 * @property {number} [keepaliveMs] the client sends something at least this often, and takes a broker that is silent for twice the time
 *   as lost; 60,000 by default, 0: never
 * @property {number} [sendBufferBytes] most bytes that wait in the WebSocket before publishes wait here; 1 MiB by default
 * @property {number} [queuePublishes] most publishes that wait here before the next is rejected with QueueFull; 10,000 by default
 * @property {number} [queueBytes] most bytes of such publishes; 16 MiB by default
 * @property {(state: State, error?: BlipMQError) => void} [onState] called at each change of `state`
 * @property {(error: BlipMQError) => void} [onRefusal] called for each refused QoS 0 publish
 * @property {object} [tls] only in Node: options of `tls.connect`, such as `ca`, `cert` and `key`
 */
/**
 * @typedef {object} PublishOnlyOptions
 * @property {0 | 1} [qos] 1: the promise is resolved when the broker has the message on disk
 * @property {number} [ttlMs] time to live in milliseconds; 0: the broker's default
 * @property {boolean} [resend] false: a QoS 1 publish without an answer fails when its connection is lost, and is not sent again
 */
/** @typedef {PublishOnlyOptions & WaitOptions} PublishOptions */
/**
 * The result of a publish.
 * @typedef {object} Receipt
 * @property {bigint} id the broker's number of the message; 0 for QoS 0
 * @property {number | undefined} subscriptions the number of QoS 1 subscriptions and groups that store the message; undefined for QoS 0
 * @property {boolean} resent it was sent more than once, because a connection was lost before the answer: subscribers may get it twice
 */
/**
 * @typedef {object} Request
 * @property {string} what
 * @property {Uint8Array<ArrayBuffer> | undefined} frame of a QoS 1 publish: kept until the answer
 * @property {boolean} resend
 * @property {number} sent how often
 * @property {(answer: Answer) => void} resolve
 * @property {(error: unknown) => void} reject
 */
/** @typedef {wire.SubAck | wire.Reply} Answer */

const WINDOW_MESSAGES = 256;
const WINDOW_BYTES = 16 << 20;
const PIECE_BYTES = 64 << 10; // the broker takes WebSocket messages of this size, whatever its limits are
const POLL_MS = 10; // a WebSocket does not say when its buffer has room again
const BACKOFF_FIRST_MS = 200;
const BACKOFF_MOST_MS = 10_000;
const LOOKS = 2; // in each keep-alive interval; browsers may delay timers of hidden pages to one a minute
const FINAL_CODES = [400, 401, 403, 409, 426]; // another attempt would have the same answer
const TIMER_MOST_MS = 2 ** 31 - 1;

const encoder = new TextEncoder();

/** @param {unknown} payload @returns {Uint8Array} */
function bytesOf(payload) {
  if (typeof payload === "string") return encoder.encode(payload);
  if (payload instanceof ArrayBuffer) return new Uint8Array(payload);
  if (ArrayBuffer.isView(payload)) return new Uint8Array(payload.buffer, payload.byteOffset, payload.byteLength);
  throw new UsageError(`A payload is a string, an ArrayBuffer or a view of one, not ${typeof payload}; JSON.stringify an object first.`);
}

/** @param {string} url */
function addressOf(url) {
  /** @type {URL} */
  let parsed;
  try {
    parsed = new URL(url);
  } catch {
    throw new UsageError(`${url} is not a URL; write ws://HOST:PORT/blipmq or wss://HOST:PORT/blipmq.`);
  }
  if (!["ws:", "wss:"].includes(parsed.protocol) || parsed.username || parsed.hash) {
    throw new UsageError(`${url} is not ws://HOST:PORT/blipmq or wss://HOST:PORT/blipmq.`);
  }
  if (parsed.pathname === "/") parsed.pathname = "/blipmq";
  return parsed.href;
}

/** A connection to one broker. Make it with `connect`. */
export class Client {
  /** @type {State} */
  #state = "connecting";
  #url;
  #options;
  #openSocket;

  /** @type {Socket | undefined} */
  #socket;
  /** Counts connections: events of an earlier socket are ignored. */
  #generation = 0;
  #welcomed = false;
  #reader = new wire.FrameReader();
  /** @type {BlipMQError | undefined} why the broker closes */
  #farewell;
  #namesNoRequest = false;
  /** @type {BlipMQError | undefined} */
  #closedBy;
  /** @type {(() => void) | undefined} of `close`, which waits for the end of the connection */
  #onEnd;
  /** @type {(error: unknown) => void} ends an attempt to connect */
  #giveUp = () => {};

  /** @type {Uint8Array<ArrayBuffer>[]} */
  #out = [];
  #outBytes = 0;
  #flushing = false;
  #seq = 0;
  /** @type {Map<number, Request>} requests without an answer, in the order of their sending */
  #requests = new Map();
  #windowMessages = 0;
  #windowBytes = 0;
  /**
   * Operations that wait until they can be sent, in the order of the calls.
   * @type {Set<{bytes: number, answered: boolean, resolve(): void, reject(error: unknown): void}>}
   */
  #queue = new Set();
  #queueBytes = 0;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #poll;

  /** @type {Map<string, Subscription[]>} */
  #filters = new Map();
  /** @type {Map<string, Subscription[]>} the subscriptions of a topic */
  #routes = new Map();
  /** @type {Map<bigint, Set<Subscription>>} messages that several subscriptions have, and that not all have acknowledged */
  #shared = new Map();
  /** @type {BlipMQError | undefined} */
  #refused;

  #attempts = 0;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #retry;
  /** @type {ReturnType<typeof setInterval> | undefined} */
  #look;
  #quiet = false; // nothing was sent since the last look
  #unheard = 0; // looks without anything received
  #online = () => {
    if (this.#retry !== undefined) {
      clearTimeout(this.#retry);
      this.#connectAgain();
    }
  };

  /** @param {string} url @param {ConnectOptions} options @param {OpenSocket} openSocket @internal */
  constructor(url, options, openSocket) {
    const {
      clientId = "", apiKey = "", timeoutMs = 10_000, reconnect = true, keepaliveMs = 60_000, sendBufferBytes = 1 << 20,
      queuePublishes = 10_000, queueBytes = 16 << 20, onState, onRefusal, tls,
    } = options;
    checkIdentity("clientId", clientId);
    if (checkText("apiKey", apiKey) > 512) throw new UsageError("The API key is longer than 512 bytes; is it the right text?");
    checkNumber("timeoutMs", timeoutMs, 0);
    checkNumber("keepaliveMs", keepaliveMs, 0);
    checkNumber("sendBufferBytes", sendBufferBytes, 1);
    checkNumber("queuePublishes", queuePublishes, 0);
    checkNumber("queueBytes", queueBytes, 0);
    this.#url = addressOf(url);
    this.#options = { clientId, apiKey, timeoutMs, reconnect, keepaliveMs, sendBufferBytes, queuePublishes, queueBytes, onState, onRefusal, tls };
    this.#openSocket = openSocket;
  }

  /** "connecting", "connected", "disconnected" or "closed". */
  get state() {
    return this.#state;
  }

  /** How many QoS 1 publishes have no answer yet. */
  get unanswered() {
    return this.#windowMessages;
  }

  /** How many operations wait for a connection or for room. */
  get waiting() {
    return this.#queue.size;
  }

  // ---- verbs ----

  /**
   * Send one message. QoS 0 is resolved when the message is handed to the WebSocket, QoS 1 when the broker has it on disk. During an
   * outage it waits for the connection. Rejects with UsageError, QueueFull, Disconnected, TimedOut, Refused, or the signal's reason.
   * After Disconnected, TimedOut and an abort a QoS 1 message may have arrived all the same.
   * @param {string} topic
   * @param {string | ArrayBuffer | ArrayBufferView} payload text is sent as UTF-8
   * @param {PublishOptions} [options]
   * @returns {Promise<Receipt>}
   */
  async publish(topic, payload, options = {}) {
    const { qos = 0, ttlMs = 0, resend = true } = options;
    checkTopic(topic);
    if (qos !== 0 && qos !== 1) throw new UsageError(`qos is ${String(qos)}; it must be 0 or 1.`);
    if (!Number.isSafeInteger(ttlMs) || ttlMs < 0) throw new UsageError(`ttlMs is ${String(ttlMs)}; it must be a whole number from 0.`);
    const seq = qos ? ++this.#seq : 0;
    // encoded now: the caller may change the payload later
    const frame = wire.encodeCommand({ action: wire.PUB, topic, payload: bytesOf(payload), ttlMs, qos, seq });
    const limits = this.#limits(options);
    if (!qos) {
      await this.#turn(frame.length, false, limits, () => this.#send(frame));
      return { id: 0n, subscriptions: undefined, resent: false };
    }
    /** @type {Request | undefined} */
    let request;
    const answer = await this.#turn(frame.length, true, limits, () => {
      const asked = this.#ask(seq, `Publish to ${topic}`, limits, frame, resend);
      request = asked.request;
      return asked.promise;
    });
    return {
      id: "id" in answer ? answer.id : 0n,
      subscriptions: "id" in answer ? answer.subscriptions : undefined,
      resent: request !== undefined && request.sent > 1,
    };
  }

  /**
   * Subscribe to a topic or a filter. The subscription is made again after each reconnect. Rejects with UsageError, Refused,
   * Disconnected or TimedOut.
   * @param {string} filter
   * @param {SubscribeOptions & WaitOptions} [options]
   * @returns {Promise<Subscription>}
   */
  async subscribe(filter, options = {}) {
    const subscription = new Subscription(
      { acknowledge: (ids, holder) => this.#acknowledge(ids, holder), close: (holder, error) => this.#leave(holder, error) },
      filter, options,
    );
    if (subscription.durable && !this.#options.clientId) {
      throw new UsageError(`A durable subscription to ${filter} needs a clientId: pass one to connect.`);
    }
    const limits = this.#limits(options);
    for (;;) {
      try {
        await this.#turn(0, false, limits, () => {
          const group = this.#filters.get(filter) ?? [];
          if (!group.every((other) => other.isLike(subscription))) {
            throw new UsageError(`${filter} is subscribed with another qos, group or durable; use the same, or a second client.`);
          }
          if (!group.includes(subscription)) this.#filters.set(filter, [...group, subscription]);
          this.#routes.clear();
          return this.#askToSubscribe(subscription, limits).promise;
        });
        return subscription;
      } catch (error) {
        if (error instanceof Disconnected && this.#state !== "closed" && this.#options.reconnect && performance.now() < limits.end) continue;
        if (this.#drop(subscription) && !(error instanceof Refused)) this.#unsubscribeQuietly(subscription);
        throw error;
      }
    }
  }

  /**
   * End all subscriptions of this client to this filter, the durable ones of its clientId too. With `group`, leave that group only.
   * @param {string} filter
   * @param {{group?: string} & WaitOptions} [options]
   */
  async unsubscribe(filter, options = {}) {
    checkFilter(filter);
    const { group = "" } = options;
    checkIdentity("group", group);
    await this.#request({ action: wire.UNSUB, topic: filter, group }, `Unsubscribe from ${filter}`, options);
    for (const subscription of this.#filters.get(filter) ?? []) {
      if (group && subscription.group !== group) continue;
      this.#drop(subscription);
      subscription.end();
    }
  }

  /** Send PING after all before; resolves with the milliseconds until its answer. @param {WaitOptions} [options] */
  async ping(options = {}) {
    const began = performance.now();
    await this.#request({ action: wire.PING }, "Ping", options);
    return performance.now() - began;
  }

  /** Resolves when the broker has read all publishes before. Rejects with the first refusal of a QoS 0 publish since the last call. @param {WaitOptions} [options] */
  async flush(options = {}) {
    await this.ping(options);
    const refused = this.#refused;
    this.#refused = undefined;
    if (refused) throw refused;
  }

  /** The state of the broker. @param {WaitOptions} [options] @returns {Promise<Record<string, any>>} */
  async info(options = {}) {
    const answer = await this.#request({ action: wire.INFO }, "Info", options);
    return JSON.parse(new TextDecoder().decode("payload" in answer ? answer.payload : undefined));
  }

  /** Close: the broker answers what was sent before. Publishes that still wait for a connection are rejected. @param {{timeoutMs?: number}} [options] */
  async close({ timeoutMs = this.#options.timeoutMs } = {}) {
    if (this.#state === "closed") return;
    const gone = new Disconnected("The client was closed before this was sent.");
    for (const waiter of [...this.#queue]) waiter.reject(gone);
    this.#options.reconnect = false;
    const socket = this.#socket;
    if (socket && this.#welcomed) {
      this.#send(wire.encodeCommand({ action: wire.QUIT }));
      this.#flush();
      const ended = waiting({ timeoutMs }, () => new TimedOut("not closed in time"), () => {});
      this.#onEnd = () => ended.resolve(undefined);
      await ended.promise.catch(() => socket.abort());
    }
    this.#finish(undefined);
  }

  async [Symbol.asyncDispose ?? Symbol.for("Symbol.asyncDispose")]() {
    await this.close();
  }

  // ---- the connection ----

  /** Make the first connection. @param {{waitMs?: number, signal?: AbortSignal}} options @internal */
  async open({ waitMs = 0, signal }) {
    checkNumber("waitMs", waitMs, 0);
    const end = performance.now() + waitMs;
    for (;;) {
      const left = end - performance.now();
      try {
        signal?.throwIfAborted();
        return await this.#connect(signal, waitMs > 0 ? Math.max(left, 1000) : Infinity);
      } catch (error) {
        const again = !(error instanceof UsageError || error instanceof ProtocolError) && !FINAL_CODES.includes(/** @type {any} */ (error).code);
        if (signal?.aborted || !again || performance.now() >= end || this.#state === "closed") {
          this.#finish(error instanceof Error ? /** @type {any} */ (error) : undefined);
          throw error;
        }
        this.#setState("disconnected", /** @type {BlipMQError} */ (error));
        const pause = waiting({ timeoutMs: Math.min(this.#delay(), end - performance.now()), signal }, () => new TimedOut(""), () => {});
        await pause.promise.catch(() => {});
        this.#setState("connecting");
      }
    }
  }

  /** One attempt: open a WebSocket, send HELLO, wait for its answer. @param {AbortSignal | undefined} signal @param {number} mostMs */
  async #connect(signal, mostMs) {
    const { timeoutMs, clientId, apiKey, keepaliveMs, tls } = this.#options;
    const generation = ++this.#generation;
    const current = () => generation === this.#generation;
    const late = () => new Unreachable(`No answer from ${this.#url} in ${Math.min(timeoutMs, mostMs)} ms.`, { hint: "Check the address, and whether the broker runs." });
    /** @type {ReturnType<typeof waiting<Answer>>} */
    const welcome = waiting({ timeoutMs: Math.min(timeoutMs, mostMs), signal }, late, () => {});
    this.#giveUp = welcome.reject;
    this.#reader = new wire.FrameReader();
    this.#farewell = undefined;
    this.#namesNoRequest = false;
    this.#out = [];
    this.#outBytes = 0;
    let opened = false;
    const hello = ++this.#seq;
    try {
      const socket = this.#openSocket(this.#url, {
        opened: () => {
          if (!current()) return;
          opened = true;
          this.#requests.set(hello, { what: "HELLO", frame: undefined, resend: false, sent: 1, resolve: welcome.resolve, reject: welcome.reject });
          socket.send(wire.encodeCommand({ action: wire.HELLO, seq: hello, clientId, apiKey, protocol: wire.PROTOCOL, keepaliveMs: Math.ceil(keepaliveMs) }));
        },
        received: (data) => current() && this.#received(data),
        ended: (end) => {
          if (!current()) return;
          const error = this.#reason(end, opened);
          if (!this.#welcomed) welcome.reject(error);
          this.#lost(error);
        },
      }, tls);
      this.#socket = socket;
      const answer = await welcome.promise;
      const promised = "keepaliveMs" in answer ? answer.keepaliveMs : 0;
      this.#keepAlive(promised || keepaliveMs);
    } catch (error) {
      if (current()) {
        this.#requests.delete(hello);
        this.#generation++;
        this.#socket?.abort();
        this.#socket = undefined;
        this.#welcomed = false;
      }
      throw error;
    }
  }

  /** What an answer to HELLO does, before anything that came with it is read. */
  #welcome() {
    this.#welcomed = true;
    this.#attempts = 0;
    for (const [filter, [first]] of this.#filters) {
      this.#askToSubscribe(first, this.#limits({})).promise.catch((error) => {
        if (!(error instanceof Refused)) return;
        for (const subscription of this.#filters.get(filter) ?? []) {
          this.#drop(subscription);
          subscription.end(error);
        }
      });
    }
    for (const request of this.#requests.values()) {
      if (!request.frame) continue;
      request.sent++;
      this.#send(request.frame);
    }
    this.#setState("connected");
    this.#pump();
  }

  /** @param {{code: number, reason: string, error?: unknown}} end @param {boolean} opened @returns {BlipMQError} */
  #reason({ code, reason, error }, opened) {
    if (this.#farewell) return this.#farewell;
    const why = error instanceof Error ? ` (${error.message})` : reason ? ` (${code}: ${reason})` : code > 1000 && code !== 1006 ? ` (${code})` : "";
    if (error instanceof ProtocolError) return error;
    if (!opened) {
      const hint = "Is the broker running, with server.ws_bind_addr or tls_bind_addr? In a browser: is the page's origin in server.ws_origins?";
      return new Unreachable(`No WebSocket connection to ${this.#url}${why}. ${hint}`, { hint, cause: error });
    }
    const hint = "The broker was stopped or restarted, or the network failed.";
    return new Disconnected(`The connection to ${this.#url} ended${why}. ${hint} Unconfirmed messages may be lost.`, { hint, cause: error });
  }

  /** The connection has ended: unanswered requests fail, QoS 1 publishes are kept. @param {BlipMQError} error */
  #lost(error) {
    const was = this.#welcomed;
    this.#generation++;
    this.#socket = undefined;
    this.#welcomed = false;
    this.#out = [];
    this.#outBytes = 0;
    clearInterval(this.#look);
    this.#shared.clear();
    for (const subscription of this.#subscriptions()) subscription.takeBack();
    const again = this.#options.reconnect && this.#state !== "closed" && !FINAL_CODES.includes(error.code);
    const requests = [...this.#requests];
    // The broker could not say which publish was too large. Sent again, it would end each connection.
    /** @type {number} */
    const largest = error.code === 413 && this.#namesNoRequest
      ? requests.reduce((most, [, { frame }]) => Math.max(most, frame?.length ?? 0), 0) : Infinity;
    let blamed = false;
    for (const [seq, request] of requests) {
      /** @type {boolean} */
      const blame = !blamed && request.frame !== undefined && request.frame.length === largest;
      blamed ||= blame;
      if (request.frame && request.resend && again && !blame) continue;
      this.#forget(seq);
      request.reject(error);
    }
    if (this.#onEnd) return this.#onEnd(); // close() waits for it
    if (!was) return; // #connect reports it
    if (!again) return this.#finish(error);
    this.#setState("disconnected", error);
    this.#retryLater();
  }

  #delay() {
    return Math.random() * Math.min(BACKOFF_MOST_MS, BACKOFF_FIRST_MS * 2 ** Math.min(this.#attempts++, 32));
  }

  #retryLater() {
    this.#retry = setTimeout(() => this.#connectAgain(), this.#delay());
    globalThis.addEventListener?.("online", this.#online);
  }

  #connectAgain() {
    this.#retry = undefined;
    globalThis.removeEventListener?.("online", this.#online);
    if (this.#state === "closed") return;
    this.#setState("connecting");
    this.#connect(undefined, Infinity).catch((error) => {
      if (this.#state === "closed" || this.#welcomed) return;
      if (FINAL_CODES.includes(error.code) || !this.#options.reconnect) return this.#finish(error);
      this.#setState("disconnected", error);
      this.#retryLater();
    });
  }

  /** Close for good. @param {BlipMQError | undefined} error */
  #finish(error) {
    if (this.#state === "closed") return;
    this.#closedBy = error;
    this.#generation++;
    this.#socket?.abort();
    this.#socket = undefined;
    this.#welcomed = false;
    clearTimeout(this.#retry);
    clearTimeout(this.#poll);
    clearInterval(this.#look);
    globalThis.removeEventListener?.("online", this.#online);
    this.#setState("closed", error);
    const gone = error ?? new Disconnected("The client was closed before the broker answered.");
    this.#giveUp(gone);
    for (const [seq, request] of [...this.#requests]) {
      this.#forget(seq);
      request.reject(gone);
    }
    for (const waiter of [...this.#queue]) waiter.reject(gone);
    for (const subscription of this.#subscriptions()) subscription.end(error);
    this.#filters.clear();
    this.#routes.clear();
    this.#shared.clear();
  }

  /** @param {State} state @param {BlipMQError} [error] */
  #setState(state, error) {
    if (state === this.#state) return;
    this.#state = state;
    const { onState } = this.#options;
    if (onState) queueMicrotask(() => onState(state, error));
  }

  /** @param {number} intervalMs */
  #keepAlive(intervalMs) {
    clearInterval(this.#look);
    if (!intervalMs || !this.#welcomed) return;
    this.#quiet = false;
    this.#unheard = 0;
    this.#look = setInterval(() => {
      // Looks are counted, not time: after a sleep of the machine the broker gets its chance to answer.
      if (++this.#unheard >= 2 * LOOKS) {
        const hint = "The network or the broker's machine failed, or the broker holds this client back for longer than that.";
        const silent = new Disconnected(`Nothing came from ${this.#url} for ${2 * intervalMs} ms. ${hint}`, { hint });
        this.#socket?.abort();
        this.#lost(silent);
      } else if (this.#quiet || this.#unheard >= LOOKS) {
        this.#send(wire.encodeCommand({ action: wire.PING }));
      }
      this.#quiet = true;
    }, Math.min(intervalMs / LOOKS, TIMER_MOST_MS));
  }

  // ---- sending ----

  /** @param {WaitOptions} options */
  #limits({ timeoutMs = this.#options.timeoutMs, signal }) {
    checkNumber("timeoutMs", timeoutMs, 0);
    return { timeoutMs, signal, end: performance.now() + timeoutMs };
  }

  /** @param {Uint8Array<ArrayBuffer>} frame */
  #send(frame) {
    this.#out.push(frame);
    this.#outBytes += frame.length;
    this.#quiet = false;
    if (this.#outBytes >= PIECE_BYTES) {
      this.#flush();
    } else if (!this.#flushing) {
      this.#flushing = true;
      queueMicrotask(() => this.#flush());
    }
  }

  /** Hand all frames to the WebSocket, in messages of 64 KiB at most. */
  #flush() {
    this.#flushing = false;
    if (!this.#socket || this.#outBytes === 0) return;
    let data = this.#out[0];
    if (this.#out.length > 1) {
      data = new Uint8Array(this.#outBytes);
      let at = 0;
      for (const frame of this.#out) { data.set(frame, at); at += frame.length; }
    }
    this.#out = [];
    this.#outBytes = 0;
    for (let at = 0; at < data.length; at += PIECE_BYTES) this.#socket.send(data.subarray(at, at + PIECE_BYTES));
  }

  /** @param {boolean} answered whether it takes a place in the window */
  #mayGo(answered) {
    const { sendBufferBytes } = this.#options;
    return this.#welcomed && this.#socket !== undefined && this.#socket.buffered() + this.#outBytes < sendBufferBytes &&
      (!answered || (this.#windowMessages < WINDOW_MESSAGES && this.#windowBytes < WINDOW_BYTES));
  }

  /**
   * Call `go` when everything queued before has gone and there is room.
   * @template T
   * @param {number} bytes @param {boolean} answered
   * @param {{timeoutMs: number, signal?: AbortSignal, end: number}} limits
   * @param {() => T} go
   * @returns {Promise<Awaited<T>>}
   */
  async #turn(bytes, answered, limits, go) {
    limits.signal?.throwIfAborted();
    if (this.#state === "closed") throw this.#closedBy ?? new Disconnected("The client is closed.", { hint: "Open a new one with connect." });
    if (this.#queue.size === 0 && this.#mayGo(answered)) return await go();
    const { queuePublishes, queueBytes } = this.#options;
    if (bytes && (this.#queue.size >= queuePublishes || this.#queueBytes + bytes > queueBytes)) {
      throw new QueueFull(`${this.#queue.size} publishes wait to be sent, with ${this.#queueBytes} bytes.`, {
        hint: "Await publishes before you make more, or raise queuePublishes and queueBytes.",
      });
    }
    return await new Promise((resolve, reject) => {
      const leave = () => {
        if (this.#queue.delete(waiter)) this.#queueBytes -= bytes;
      };
      const wait = waiting({ timeoutMs: Math.max(0, limits.end - performance.now()), signal: limits.signal }, () => this.#tooLate(limits.timeoutMs), leave);
      const waiter = {
        bytes, answered,
        resolve: () => {
          leave();
          wait.resolve(undefined);
          try {
            resolve(go()); // now, not in a later microtask: the order of sending is that of the calls
          } catch (error) {
            reject(error);
          }
        },
        reject: (/** @type {unknown} */ error) => {
          leave();
          wait.reject(error);
        },
      };
      wait.promise.catch(reject);
      this.#queue.add(waiter);
      this.#queueBytes += bytes;
      this.#pump();
    });
  }

  /** Let operations go that have waited. */
  #pump() {
    for (const waiter of this.#queue) {
      if (!this.#mayGo(waiter.answered)) break;
      waiter.resolve();
    }
    if (this.#queue.size && this.#welcomed && this.#poll === undefined) {
      this.#poll = setTimeout(() => {
        this.#poll = undefined;
        this.#pump();
      }, POLL_MS);
    }
  }

  /** @param {number} timeoutMs */
  #tooLate(timeoutMs) {
    if (this.#welcomed) {
      const hint = "It is overloaded or holds publishers back because a queue is full; try again, or slower.";
      return new TimedOut(`The broker at ${this.#url} has not taken or answered enough for ${timeoutMs} ms. ${hint}`, { hint });
    }
    const hint = this.#options.reconnect ? "The client keeps trying." : "";
    return new Disconnected(`No connection to ${this.#url} for ${timeoutMs} ms. ${hint}`.trim(), { hint });
  }

  /**
   * Send a request whose answer settles the promise.
   * @param {number} seq @param {string} what
   * @param {{timeoutMs: number, signal?: AbortSignal, end: number}} limits
   * @param {Uint8Array<ArrayBuffer>} frame
   * @param {boolean | undefined} [resend] of a QoS 1 publish: whether it is sent again on the next connection
   * @returns {{request: Request, promise: Promise<Answer>}}
   */
  #ask(seq, what, limits, frame, resend) {
    const late = () => (this.#welcomed
      ? new TimedOut(`${what}: the broker at ${this.#url} did not answer in ${limits.timeoutMs} ms.`, { hint: "It is overloaded; try again later." })
      : this.#tooLate(limits.timeoutMs));
    /** @type {ReturnType<typeof waiting<Answer>>} */
    const answer = waiting({ timeoutMs: Math.max(0, limits.end - performance.now()), signal: limits.signal }, late, () => {
      this.#forget(seq);
      this.#pump();
    });
    const publish = resend !== undefined;
    /** @type {Request} */
    const request = { what, frame: publish ? frame : undefined, resend: resend === true, sent: 1, resolve: answer.resolve, reject: answer.reject };
    this.#requests.set(seq, request);
    if (publish) {
      this.#windowMessages++;
      this.#windowBytes += frame.length;
    }
    this.#send(frame);
    return { request, promise: answer.promise };
  }

  /** @param {wire.Command} command @param {string} what @param {WaitOptions} options @returns {Promise<Answer>} */
  #request(command, what, options) {
    const limits = this.#limits(options);
    return this.#turn(0, false, limits, () => {
      const seq = ++this.#seq;
      return this.#ask(seq, what, limits, wire.encodeCommand({ ...command, seq })).promise;
    });
  }

  /** @param {Subscription} subscription @param {{timeoutMs: number, signal?: AbortSignal, end: number}} limits */
  #askToSubscribe({ filter, qos, durable, group }, limits) {
    const seq = ++this.#seq;
    return this.#ask(seq, `Subscribe to ${filter}`, limits, wire.encodeCommand({ action: wire.SUB, topic: filter, qos, durable, group, seq }));
  }

  /** @param {number} seq */
  #forget(seq) {
    const request = this.#requests.get(seq);
    if (request && this.#requests.delete(seq) && request.frame) {
      this.#windowMessages--;
      this.#windowBytes -= request.frame.length;
    }
    return request;
  }

  // ---- receiving ----

  /** @param {Uint8Array} data */
  #received(data) {
    this.#unheard = 0;
    const generation = this.#generation;
    try {
      for (const frame of this.#reader.feed(data)) {
        if (frame instanceof wire.Message) this.#deliver(frame);
        else this.#answered(frame);
        if (generation !== this.#generation) return; // a handler has closed the client
      }
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
      this.#farewell = error;
      this.#socket?.abort();
    }
    this.#pump();
  }

  /** @param {Answer} answer */
  #answered({ seq, code, text, ...rest }) {
    const request = this.#forget(seq);
    if (request) {
      if (code === 0) {
        if (request.what === "HELLO") this.#welcome();
        request.resolve({ seq, code, text, ...rest });
        return;
      }
      const error = refusal(request.what, code, text);
      if ([401, 413, 426, 429].includes(code) && (code !== 429 || !this.#welcomed)) this.#farewell = error;
      request.reject(error);
    } else if (code === 410 && "payload" in rest) {
      const [filter] = new TextDecoder().decode(rest.payload).split("\n");
      for (const subscription of this.#filters.get(filter) ?? []) {
        this.#drop(subscription);
        subscription.end(refusal(`The subscription to ${filter}`, code, text));
      }
    } else if (code) {
      const error = refusal([401, 409, 426].includes(code) ? "This client" : "A publish", code, text);
      if ([401, 409, 413, 426].includes(code)) {
        this.#farewell = error;
        this.#namesNoRequest = true;
      }
      this.#refused ??= error;
      const { onRefusal } = this.#options;
      if (onRefusal) queueMicrotask(() => onRefusal(error));
    }
  }

  #subscriptions() {
    return [...this.#filters.values()].flat();
  }

  /** @param {Message} message */
  #deliver(message) {
    let takers = this.#routes.get(message.topic);
    if (!takers) {
      if (this.#routes.size >= 1024) this.#routes.clear();
      takers = this.#subscriptions().filter(({ filter }) => matches(filter, message.topic));
      this.#routes.set(message.topic, takers);
    }
    if (message.qos > 0) {
      const holders = takers.filter(({ qos }) => qos > 0);
      if (holders.length > 1) this.#shared.set(message.id, new Set([...(this.#shared.get(message.id) ?? []), ...holders]));
    }
    for (const taker of takers) taker.put(message);
  }

  /** Send acknowledgements; of messages that several subscriptions have, when the last has acknowledged. @param {bigint[]} ids @param {Subscription} holder */
  #acknowledge(ids, holder) {
    for (const id of ids) {
      const holders = this.#shared.get(id);
      holders?.delete(holder);
      if (holders?.size) continue;
      this.#shared.delete(id);
      if (this.#welcomed) this.#send(wire.encodeCommand({ action: wire.ACK, seq: id }));
    }
  }

  /** Route no more messages to it; true if it was the last of its filter. @param {Subscription} subscription */
  #drop(subscription) {
    const group = this.#filters.get(subscription.filter);
    if (!group?.includes(subscription)) return false;
    const rest = group.filter((other) => other !== subscription);
    if (rest.length) this.#filters.set(subscription.filter, rest);
    else this.#filters.delete(subscription.filter);
    this.#routes.clear();
    for (const [id, holders] of this.#shared) {
      if (holders.delete(subscription) && holders.size === 0) this.#shared.delete(id);
    }
    return rest.length === 0;
  }

  /** @param {Subscription} subscription */
  #unsubscribeQuietly({ filter, group }) {
    if (!this.#welcomed) return Promise.resolve(undefined);
    // The subscription has ended here in any case; the broker ends it with the connection at the latest.
    return this.#request({ action: wire.UNSUB, topic: filter, group, keepDurable: true }, `Unsubscribe from ${filter}`, {}).catch(() => undefined);
  }

  /** @param {Subscription} subscription @param {BlipMQError} [error] */
  async #leave(subscription, error) {
    const last = this.#drop(subscription);
    subscription.end(error);
    if (last) await this.#unsubscribeQuietly(subscription);
  }
}
