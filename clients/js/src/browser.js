// The package in browsers and other run-times that have a WebSocket.
import { openSocket } from "./browser_socket.js";
import { Client } from "./client.js";

/** @typedef {import("./client.js").ConnectOptions} ConnectOptions */
/** @typedef {import("./client.js").PublishOptions} PublishOptions */
/** @typedef {import("./client.js").Receipt} Receipt */
/** @typedef {import("./client.js").State} State */
/** @typedef {import("./subscription.js").SubscribeOptions} SubscribeOptions */
/** @typedef {import("./subscription.js").WaitOptions} WaitOptions */

export * from "./errors.js";
export { checkFilter, checkTopic, matches } from "./topics.js";
export { Message } from "./wire.js";
export { Subscription } from "./subscription.js";
export { Client };

/**
 * Connect to a broker: `ws://HOST:PORT/blipmq` or `wss://HOST:PORT/blipmq`. Rejects with Unreachable, Refused, UsageError, or the
 * signal's reason.
 * @param {string} url
 * @param {ConnectOptions} [options]
 * @returns {Promise<Client>}
 */
export async function connect(url, options = {}) {
  const client = new Client(url, options, openSocket);
  await client.open(options);
  return client;
}
