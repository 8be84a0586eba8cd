// The rules of topics and filters, as docs/PROTOCOL.md writes them.
//
// Invariant: the answers are those of blipmq/wire/topics.py on every text.
import { UsageError } from "./errors.js";

const BYTES_MAX = 256;
const encoder = new TextEncoder();

/**
 * The size of a text in UTF-8. Throws UsageError if it is no text, or has half of a surrogate pair.
 * @param {string} noun @param {string} text
 */
export function checkText(noun, text) {
  if (typeof text !== "string") throw new UsageError(`The ${noun} is ${String(text)} (${typeof text}); it must be a string.`);
  if (/\p{Cs}/u.test(text)) throw new UsageError(`The ${noun} has half of a surrogate pair; it is not UTF-8.`);
  return encoder.encode(text).length;
}

/** @param {string} noun @param {string} text */
export function checkIdentity(noun, text) {
  const size = checkText(noun, text);
  if (size > BYTES_MAX) throw new UsageError(`The ${noun} has ${size} bytes; the maximum is ${BYTES_MAX}. Shorten it.`);
}

/** @param {string} noun @param {string} text */
function checkName(noun, text) {
  checkIdentity(noun, text);
  if (text === "") throw new UsageError(`The ${noun} is empty; it needs 1 to ${BYTES_MAX} bytes.`);
  // eslint-disable-next-line no-control-regex
  if (/[\u0000-\u001f\u007f-\u009f]/.test(text)) throw new UsageError(`The ${noun} ${JSON.stringify(text)} has a control character; remove it.`);
}

/** Throws UsageError unless a message can be published to `topic`. @param {string} topic */
export function checkTopic(topic) {
  checkName("topic", topic);
  if (/[*>+#]/.test(topic)) throw new UsageError(`The topic ${topic} has a wildcard; wildcards are for subscribing, publish to one topic.`);
}

/**
 * Throws UsageError unless `filter` is valid; returns the separator of its wildcards, "" without one.
 * @param {string} filter
 */
export function checkFilter(filter) {
  checkName("filter", filter);
  const dots = /[*>]/.test(filter);
  const slashes = /[+#]/.test(filter);
  if (dots && slashes) throw new UsageError(`The filter ${filter} mixes * > (dot levels) with + # (slash levels); keep to one kind.`);
  if (!dots && !slashes) return "";
  const separator = dots ? "." : "/";
  filter.split(separator).forEach((level, index, levels) => {
    if (level.length > 1 && /[*>+#]/.test(level)) {
      throw new UsageError(`In the filter ${filter} the level ${level} mixes a wildcard with text; a wildcard stands alone.`);
    }
    if ((level === ">" || level === "#") && index < levels.length - 1) {
      throw new UsageError(`In the filter ${filter} the wildcard ${level} must be the last level.`);
    }
  });
  return separator;
}

/** Whether a valid filter matches a topic. @param {string} filter @param {string} topic */
export function matches(filter, topic) {
  const separator = checkFilter(filter);
  if (separator === "") return filter === topic;
  if (topic.startsWith("$") && !filter.startsWith("$")) return false;
  const wanted = filter.split(separator);
  const given = topic.split(separator);
  for (let index = 0; index < wanted.length; index++) {
    const level = wanted[index];
    if (level === "#") return true; // this level and all below: site/# matches site too
    if (level === ">") return given.length > index;
    if (index >= given.length || (level !== "*" && level !== "+" && level !== given[index])) return false;
  }
  return given.length === wanted.length;
}
