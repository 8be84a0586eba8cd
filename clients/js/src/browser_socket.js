// A WebSocket of the platform: browsers, and run-times that have one.

/**
 * What a client needs of a WebSocket. `ended` is called once, at the end.
 * @typedef {object} Socket
 * @property {(data: Uint8Array<ArrayBuffer>) => void} send
 * @property {() => void} abort
 * @property {() => number} buffered
 */
/**
 * @typedef {object} SocketEvents
 * @property {() => void} opened
 * @property {(data: Uint8Array) => void} received
 * @property {(end: {code: number, reason: string, error?: unknown}) => void} ended
 */
/** @typedef {(url: string, events: SocketEvents, tls: object | undefined) => Socket} OpenSocket */

/** @type {OpenSocket} */
export function openSocket(url, events) {
  const socket = new WebSocket(url, "blipmq");
  let over = false;
  const end = (/** @type {number} */ code, /** @type {string} */ reason) => {
    if (over) return;
    over = true;
    events.ended({ code, reason });
  };
  socket.binaryType = "arraybuffer";
  socket.onopen = () => over || events.opened();
  socket.onmessage = ({ data }) => {
    if (over) return;
    if (typeof data === "string") socket.close();
    else events.received(new Uint8Array(data));
  };
  socket.onclose = ({ code, reason }) => end(code, reason);
  return {
    send: (data) => socket.send(data),
    abort: () => {
      socket.close(); // browsers go on for a while with a peer that does not answer
      queueMicrotask(() => end(1006, ""));
    },
    buffered: () => socket.bufferedAmount,
  };
}
