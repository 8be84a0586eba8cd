// A user's program in TypeScript: tests/test_js_client.py checks it against the types of the package. It is not run.
import {
  BlipMQError, Client, Disconnected, Ended, Message, NotAllowed, ProtocolError, QueueFull, Refused, Subscription, TimedOut, Unreachable,
  UsageError, checkFilter, checkTopic, connect, matches, type ConnectOptions, type PublishOptions, type Receipt, type State,
  type SubscribeOptions, type WaitOptions,
} from "blipmq";

const options: ConnectOptions = { clientId: "a", apiKey: "b", waitMs: Infinity, keepaliveMs: 0, onState: (state: State, error?: BlipMQError) => void [state, error?.hint] };
const client: Client = await connect("ws://localhost:7881/blipmq", options);
const wait: WaitOptions = { timeoutMs: 5, signal: AbortSignal.timeout(5) };
const publish: PublishOptions = { qos: 1, ttlMs: 5, resend: false, ...wait };
const receipt: Receipt = await client.publish("a", new Float32Array(1), publish);
const id: bigint = receipt.id;
const count: number | undefined = receipt.subscriptions;
const how: SubscribeOptions = { qos: 1, durable: true, group: "g", autoAck: false, queueMessages: 1, queueBytes: 1, overflow: "end" };
const subscription: Subscription = await client.subscribe("a/#", { ...how, ...wait });
for await (const message of subscription) {
  const one: Message = message;
  const parts: [string, Uint8Array, string, bigint, number, number, number, boolean, Record<string, string>] = [
    one.topic, one.payload, one.text(), one.id, one.timestampMs, one.ttlMs, one.qos, one.redelivered, one.headers,
  ];
  subscription.ack(message, one);
  void parts;
}
const next: Message = await subscription.receive(wait);
const counts: number[] = [subscription.queued, subscription.dropped, client.unanswered, client.waiting, await client.ping(wait)];
const state: State = client.state;
await client.unsubscribe("a/#", { group: "g", ...wait });
await client.flush(wait);
const info: Record<string, unknown> = await client.info();
const kinds: (typeof BlipMQError)[] = [BlipMQError];
try {
  await client.publish("a", "b");
} catch (error) {
  if (error instanceof NotAllowed || error instanceof Ended || error instanceof Refused) void [error.code, error.reason, error.hint];
  if (error instanceof UsageError || error instanceof Unreachable || error instanceof Disconnected) void error.message;
  if (error instanceof TimedOut || error instanceof QueueFull || error instanceof ProtocolError) void error.cause;
}
checkTopic("a");
const separator: string = checkFilter("a/#");
const matched: boolean = matches("a/#", "a");
// @ts-expect-error QoS 2 does not exist
await client.publish("a", "b", { qos: 2 });
// @ts-expect-error a payload is no object
await client.publish("a", { b: 1 });
// @ts-expect-error such a policy does not exist
await client.subscribe("a", { overflow: "wait" });
await client.close({ timeoutMs: 5 });
void [id, count, next, counts, state, info, kinds, separator, matched];
