// The errors of the client: one class for each case that a program handles differently.
//
// Invariant: a message says what happened and the likely cause; `hint` is the next step. `code` is the broker's code from the wire,
// or 0 if the error does not come from a broker.

/** Base of all errors of this package. */
export class BlipMQError extends Error {
  /**
   * @param {string} message
   * @param {{code?: number, hint?: string, cause?: unknown}} [details]
   */
  constructor(message, { code = 0, hint = "", cause } = {}) {
    super(message, cause === undefined ? undefined : { cause });
    /** The class's name, also in minified code. */
    this.name = "BlipMQError";
    /** The broker's code; 0: the error does not come from a broker. */
    this.code = code;
    /** The next step. */
    this.hint = hint;
  }
}

/** The caller passed an invalid value. Nothing was sent. */
export class UsageError extends BlipMQError {
  /** @param {string} message @param {{hint?: string}} [details] */
  constructor(message, details) {
    super(message, details);
    this.name = "UsageError";
  }
}

/** No broker answers at the address, or it refuses the WebSocket. */
export class Unreachable extends BlipMQError {
  /** @param {string} message @param {{hint?: string, cause?: unknown}} [details] */
  constructor(message, details) {
    super(message, details);
    this.name = "Unreachable";
  }
}

/** The connection ended, or there was none in time. Unanswered messages may or may not have arrived. */
export class Disconnected extends BlipMQError {
  /** @param {string} message @param {{hint?: string, cause?: unknown}} [details] */
  constructor(message, details) {
    super(message, details);
    this.name = "Disconnected";
  }
}

/** The broker is connected but did not answer in time, or no message came in time. */
export class TimedOut extends BlipMQError {
  /** @param {string} message @param {{hint?: string}} [details] */
  constructor(message, details) {
    super(message, details);
    this.name = "TimedOut";
  }
}

/** A queue of this client is full: of publishes that wait, or of a subscription whose policy is "end". */
export class QueueFull extends BlipMQError {
  /** @param {string} message @param {{hint?: string}} [details] */
  constructor(message, details) {
    super(message, details);
    this.name = "QueueFull";
  }
}

/** The received bytes are not the BlipMQ protocol. */
export class ProtocolError extends BlipMQError {
  /** @param {string} message @param {{hint?: string}} [details] */
  constructor(message, details) {
    super(message, details);
    this.name = "ProtocolError";
  }
}

/** The broker refused the request. `code` is its code, `reason` its text. */
export class Refused extends BlipMQError {
  /** @param {string} message @param {{code?: number, hint?: string, reason?: string}} [details] */
  constructor(message, details = {}) {
    super(message, details);
    this.name = "Refused";
    /** The broker's text. */
    this.reason = details.reason ?? "";
  }
}

/** The broker does not know the API key (401), or the key has no right to the topic (403). */
export class NotAllowed extends Refused {
  /** @param {string} message @param {{code?: number, hint?: string, reason?: string}} [details] */
  constructor(message, details) {
    super(message, details);
    this.name = "NotAllowed";
  }
}

/** An operator ended the subscription (410). The connection stays open. */
export class Ended extends Refused {
  /** @param {string} message @param {{code?: number, hint?: string, reason?: string}} [details] */
  constructor(message, details) {
    super(message, details);
    this.name = "Ended";
  }
}

/** @type {Record<number, string>} */
const HINTS = {
  400: "The request is not valid; check topic, filter and QoS.",
  401: "Pass a valid key as apiKey. `blipmq keys list` on the broker lists the keys.",
  403: "Use a key with this right. `blipmq keys list` on the broker shows the rights of each key.",
  404: "Check the filter, the clientId and the group.",
  409: "Give each client its own clientId.",
  410: "Subscribe again if you still need the messages.",
  413: "Send smaller messages, or raise server.max_message_size_bytes on the broker.",
  426: "Client and broker use different protocol versions; update the older one.",
  429: "Try again later, or raise the limit on the broker.",
  500: "The broker had an internal error; its log has the cause.",
  503: "Repeat the request when the cause is gone.",
};

/**
 * The error for an answer with a code other than 0.
 * @param {string} what what was tried, such as "Publish to orders"
 * @param {number} code
 * @param {string} reason
 * @returns {Refused}
 */
export function refusal(what, code, reason) {
  const Kind = code === 401 || code === 403 ? NotAllowed : code === 410 ? Ended : Refused;
  const happened = code === 410 ? "has ended" : "was refused";
  const hint = HINTS[code] ?? "This client does not know the code; the broker may be newer.";
  return new Kind(`${what} ${happened} (${code}): ${reason || "no reason given"}. ${hint}`, { code, hint, reason });
}
