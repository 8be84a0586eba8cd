// One subscription: a bounded queue of messages, and the acknowledgements that its reader owes.
//
//   broker -> put -> [queue] -> receive -> [taken] -> acknowledged when the next message is asked for (autoAck)
//
// Invariant: a message is taken once, in the order of arrival. A QoS 1 message is never dropped here, and is not acknowledged while
// its reader may still work on it. QoS 0 messages over the limits are dropped as `overflow` says, and counted.
import { Disconnected, QueueFull, TimedOut, UsageError } from "./errors.js";
import { checkFilter, checkIdentity } from "./topics.js";

/** @typedef {import("./wire.js").Message} Message */
/** @typedef {import("./errors.js").BlipMQError} BlipMQError */

/**
 * @typedef {object} WaitOptions
 * @property {number} [timeoutMs] how long to wait at most, in milliseconds
 * @property {AbortSignal} [signal] ends the wait; the promise is rejected with its reason
 */
/**
 * @typedef {object} SubscribeOptions
 * @property {0 | 1} [qos] 1: QoS 1 messages come until they are acknowledged
 * @property {boolean} [durable] the broker keeps messages while this clientId is away, until `unsubscribe`; needs qos 1 and a clientId
 * @property {string} [group] the queue group: each message goes to one member
 * @property {boolean} [autoAck] false: acknowledge with `ack`. true, the default: a message is acknowledged when the next is asked for
 * @property {number} [queueMessages] most QoS 0 messages that wait for the reader; 10,000 by default
 * @property {number} [queueBytes] most bytes of payload that wait for the reader; 16 MiB by default
 * @property {"drop-oldest" | "drop-newest" | "end"} [overflow] what happens to a QoS 0 message over a limit; "end" ends the
 *   subscription with QueueFull. "drop-oldest" by default
 */

/** @param {string} name @param {unknown} value @param {number} least */
export function checkNumber(name, value, least) {
  if (typeof value !== "number" || !(value >= least)) {
    throw new UsageError(`${name} is ${String(value)}; it must be a number from ${least}.`);
  }
}

/**
 * A promise that is settled by the returned functions, by a timeout or by a signal.
 * @template T
 * @param {WaitOptions} options
 * @param {() => Error} late the error of a timeout
 * @param {() => void} ended called when a timeout or the signal ends the wait
 */
export function waiting({ timeoutMs = Infinity, signal }, late, ended) {
  /** @type {(value: T) => void} */
  let resolve = () => {};
  /** @type {(error: unknown) => void} */
  let reject = () => {};
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;
  const stop = () => {
    clearTimeout(timer);
    signal?.removeEventListener("abort", abort);
  };
  const abort = () => {
    stop();
    ended();
    reject(signal?.reason);
  };
  /** @type {Promise<T>} */
  const promise = new Promise((done, failed) => {
    resolve = (value) => { stop(); done(value); };
    reject = (error) => { stop(); failed(error); };
  });
  if (signal?.aborted) {
    reject(signal.reason);
  } else {
    signal?.addEventListener("abort", abort);
    if (timeoutMs < 2 ** 31) {
      timer = setTimeout(() => {
        stop();
        ended();
        reject(late());
      }, timeoutMs);
    }
  }
  return { promise, resolve, reject };
}

/** The messages of one filter. `for await (const message of subscription)` reads them; so does `receive`. */
export class Subscription {
  /** @type {Message[]} */
  #queue = [];
  #head = 0;
  #bytes = 0;
  /** @type {Set<bigint>} */
  #ids = new Set();
  /** @type {bigint[]} */
  #taken = [];
  /** @type {Set<{resolve(message: Message | undefined): void, reject(error: unknown): void}>} */
  #readers = new Set();
  /** @type {BlipMQError | undefined} */
  #error;
  #ended = false;
  #dropped = 0;
  #limits;
  #link;

  /**
   * @param {{acknowledge(ids: bigint[], subscription: Subscription): void, close(subscription: Subscription, error?: BlipMQError): Promise<void>}} link
   * @param {string} filter
   * @param {SubscribeOptions} options
   * @internal
   */
  constructor(link, filter, options) {
    const { qos = 0, durable = false, group = "", autoAck = true, queueMessages = 10_000, queueBytes = 16 << 20, overflow = "drop-oldest" } = options;
    checkFilter(filter);
    checkIdentity("group", group);
    checkNumber("queueMessages", queueMessages, 1);
    checkNumber("queueBytes", queueBytes, 1);
    if (qos !== 0 && qos !== 1) throw new UsageError(`qos is ${String(qos)}; it must be 0 or 1.`);
    if (durable && !qos) throw new UsageError(`A durable subscription to ${filter} needs QoS 1: set qos to 1.`);
    if (!["drop-oldest", "drop-newest", "end"].includes(overflow)) {
      throw new UsageError(`overflow is ${String(overflow)}; it must be "drop-oldest", "drop-newest" or "end".`);
    }
    this.filter = filter;
    this.qos = qos;
    this.durable = Boolean(durable);
    this.group = group;
    this.autoAck = Boolean(autoAck);
    this.#limits = { queueMessages, queueBytes, overflow };
    this.#link = link;
  }

  /** How many messages wait for the reader. */
  get queued() {
    return this.#queue.length - this.#head;
  }

  /** How many QoS 0 messages were dropped because the reader was slow. */
  get dropped() {
    return this.#dropped;
  }

  /** Whether the subscription has ended. Queued messages can still be read. */
  get ended() {
    return this.#ended;
  }

  /**
   * The next message. Rejects with TimedOut after `timeoutMs`, with Disconnected once the subscription is closed, and with its error
   * if the broker ended it. Acknowledges the message before, unless autoAck is false.
   * @param {WaitOptions} [options]
   * @returns {Promise<Message>}
   */
  async receive(options = {}) {
    const message = await this.#next(options);
    if (message === undefined) throw new Disconnected(`The subscription to ${this.filter} is closed.`, { hint: "Subscribe again." });
    return message;
  }

  /** @param {WaitOptions} options @returns {Promise<Message | undefined>} */
  #next(options) {
    this.#settle();
    const message = this.#pop();
    if (message) return Promise.resolve(message);
    if (this.#ended) return this.#error ? Promise.reject(this.#error) : Promise.resolve(undefined);
    /** @type {{promise: Promise<Message | undefined>, resolve(message: Message | undefined): void, reject(error: unknown): void}} */
    const reader = waiting(
      options,
      () => new TimedOut(`No message on ${this.filter} in ${options.timeoutMs} ms.`, { hint: "Check that messages are published to it." }),
      () => this.#readers.delete(reader),
    );
    if (!options.signal?.aborted) this.#readers.add(reader);
    return reader.promise;
  }

  /**
   * Acknowledge QoS 1 messages; others are ignored. Without a connection they are delivered again.
   * @param {...Message} messages
   */
  ack(...messages) {
    const ids = messages.filter((message) => message.qos > 0).map((message) => message.id);
    this.#taken = this.#taken.filter((id) => !ids.includes(id));
    this.#link.acknowledge(ids, this);
  }

  /**
   * End the subscription. The broker goes on storing messages for a durable one; `Client.unsubscribe` ends that too. The message that
   * `receive` gave last is acknowledged. One whose loop was left with `break` or by an exception is not.
   */
  async close() {
    this.#settle();
    await this.#link.close(this);
  }

  [Symbol.asyncIterator]() {
    return {
      /** @returns {Promise<IteratorResult<Message, undefined>>} */
      next: async () => {
        const value = await this.#next({});
        return value === undefined ? { done: true, value } : { done: false, value };
      },
      /** @returns {Promise<IteratorResult<Message, undefined>>} */
      return: async () => {
        this.#taken = [];
        return { done: true, value: undefined };
      },
    };
  }

  // ---- for the client ----

  /** Whether another subscription to the same filter has the same place at the broker. @param {Subscription} other @internal */
  isLike(other) {
    return this.qos === other.qos && this.durable === other.durable && this.group === other.group;
  }

  /** @param {Message} message @internal */
  put(message) {
    if (this.#ended) return;
    const counts = this.qos > 0 && message.qos > 0;
    if (counts && (this.#ids.has(message.id) || this.#taken.includes(message.id))) return; // sent again before it was acknowledged
    const [reader] = this.#readers;
    if (reader) {
      this.#readers.delete(reader);
      if (counts && this.autoAck) this.#taken.push(message.id);
      reader.resolve(message);
      return;
    }
    if (counts) this.#ids.add(message.id);
    else if (!this.#hasRoom(message)) return;
    this.#queue.push(message);
    this.#bytes += message.payload.length;
  }

  /** Make room for a QoS 0 message. @param {Message} message */
  #hasRoom(message) {
    const { queueMessages, queueBytes, overflow } = this.#limits;
    const full = () => this.queued >= queueMessages || (this.queued > 0 && this.#bytes + message.payload.length > queueBytes);
    while (full()) {
      if (overflow === "end") {
        const hint = "Read faster, raise queueMessages and queueBytes, or choose another overflow.";
        void this.#link.close(this, new QueueFull(`The queue of the subscription to ${this.filter} is full.`, { hint }));
        return false;
      }
      const oldest = overflow === "drop-oldest" ? this.#queue.findIndex((one, at) => at >= this.#head && !this.#ids.has(one.id)) : -1;
      this.#dropped++;
      if (oldest < 0) return false;
      this.#bytes -= this.#queue[oldest].payload.length;
      if (oldest === this.#head) this.#forward();
      else this.#queue.splice(oldest, 1);
    }
    return true;
  }

  /** Step over the first message of the queue. */
  #forward() {
    this.#head++;
    if (this.#head > 64 && this.#head * 2 > this.#queue.length) {
      this.#queue = this.#queue.slice(this.#head);
      this.#head = 0;
    }
  }

  #pop() {
    const message = this.#queue[this.#head];
    if (message === undefined) return undefined;
    this.#bytes -= message.payload.length;
    if (this.#ids.delete(message.id) && this.autoAck) this.#taken.push(message.id);
    this.#forward();
    return message;
  }

  #settle() {
    if (this.#taken.length === 0) return;
    const ids = this.#taken;
    this.#taken = [];
    this.#link.acknowledge(ids, this);
  }

  /** The connection is lost: the broker sends what is queued of a durable subscription again, in order. @internal */
  takeBack() {
    if (!this.durable || this.#ids.size === 0) return;
    this.#queue = this.#queue.slice(this.#head).filter((message) => !this.#ids.has(message.id));
    this.#head = 0;
    this.#bytes = this.#queue.reduce((sum, message) => sum + message.payload.length, 0);
    this.#ids.clear();
  }

  /** No more messages come; after the queued ones, readers get `error` or a normal end. @param {BlipMQError} [error] @internal */
  end(error) {
    if (this.#ended) return;
    this.#ended = true;
    this.#error = error;
    for (const reader of this.#readers) error ? reader.reject(error) : reader.resolve(undefined);
    this.#readers.clear();
  }
}
