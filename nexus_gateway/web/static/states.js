// Describes instances: each of them, and all together. Pure: no elements, no clock, no state.
//
// One table serves the rows, the headline, the reasons below it and the tab's title, so that all of
// them agree. tests/test_control_center.py checks every combination.

import { NONE, countdown } from "./format.js";

const WEAK_SUCCESS = 90;
const BAD_SUCCESS = 50;
const WEAK_WAIT = 50;
const MOST_NAMED = 2; // in the reasons

// The worst first: the reasons name them in this order. The headline counts by `group`:
//   serving      gets requests and has answered some of them
//   ready        would get requests; there is no recent result
//   probing      the next request that it gets decides
//   unavailable  gets no requests, or has answered none
//   off          switched off
const STATES = {
  bad_key: { word: "Key refused", kind: "bad", group: "unavailable" },
  unknown_model: { word: "Model unknown", kind: "bad", group: "unavailable" },
  open: { word: "Circuit open", kind: "bad", group: "unavailable" },
  failing: { word: "Failing", kind: "bad", group: "unavailable" },
  half_open: { word: "Half open", kind: "probe", group: "probing" },
  unproven: { word: "Unproven", kind: "probe", group: "probing" },
  rate_limited: { word: "Rate limited", kind: "wait", group: "unavailable" },
  resting: { word: "Cooling down", kind: "wait", group: "unavailable" },
  parked: { word: "Parked", kind: "wait", group: "unavailable" },
  often: { word: "Failing often", kind: "bad", group: "serving" },
  at_times: { word: "Failing sometimes", kind: "weak", group: "serving" },
  slow: { word: "Slow", kind: "weak", group: "serving" },
  serving: { word: "Serving", kind: "good", group: "serving" },
  ready: { word: "Ready", kind: "ready", group: "ready" },
  off: { word: "Off", kind: "off", group: "off" },
};
const ORDER = Object.keys(STATES);
const PARKS = ["rate_limited", "resting"];
const HEALTHY = ["serving", "ready", "off"];

// Whether there was a success or a failure: until then the figures are only initial values.
export function isJudged({ totalRequests, judged = totalRequests > 0 }) {
  return judged;
}

// Returns id; word, kind (icon and colour) and group from the table; and until, the text beside
// the word. `agoMs`: the age of `instance`.
export function stateOf(instance, agoMs = 0) {
  const id = stateIdOf(instance, agoMs);
  return { id, ...STATES[id], until: untilOf(id, instance, agoMs) };
}

function stateIdOf(instance, agoMs) {
  const { enabled, circuitState, parkReason } = instance;
  if (!enabled) return "off";
  // First, as they need the operator.
  if (parkReason === "bad_key" || parkReason === "unknown_model") return parkReason;
  const circuitOpensLast =
    circuitState === "OPEN" && probeInMs(instance, agoMs) > parkedMs(instance, agoMs);
  if (parkReason && !circuitOpensLast) return PARKS.includes(parkReason) ? parkReason : "parked";
  if (circuitState === "OPEN") return "open";
  if (circuitState === "HALF_OPEN") return "half_open";
  return availableStateId(instance);
}

function availableStateId({ lastReason, metrics }) {
  const success = parseFloat(metrics.successRate);
  // The last failure was its key, limit or model, which no rate counts, without a success since.
  if (lastReason && (!isJudged(metrics) || success === 100)) return "unproven";
  if (!isJudged(metrics)) return "ready";
  if (success === 0) return "failing";
  if (success < BAD_SUCCESS) return "often";
  if (success < WEAK_SUCCESS) return "at_times";
  return parseFloat(metrics.latencyShare) > WEAK_WAIT ? "slow" : "serving";
}

const parkedMs = ({ parkedForMs }, agoMs) => Math.max(0, parkedForMs - agoMs);
const probeInMs = (instance, agoMs) => Math.max(0, instance.probeInMs - agoMs);

function untilOf(id, instance, agoMs) {
  if (id === "open") return `probe in ${countdown(probeInMs(instance, agoMs))}`;
  if (STATES[id].group === "probing") return "awaiting a probe"; // or its end
  if (id === "ready") return instance.metrics.totalRequests ? "no recent answer" : "no requests yet";
  if (STATES[id].group !== "unavailable" || id === "failing") return "";
  const next = instance.circuitState === "CLOSED" ? "back" : "probe";
  const lastMs = Math.max(parkedMs(instance, agoMs), probeInMs(instance, agoMs));
  return `${next} in ${countdown(lastMs)}`;
}

// Why its last request failed, unless the word already states it. Off needs no reason.
export function reasonOf({ lastReason }, { id, word }) {
  const isStated = !lastReason || lastReason.toLowerCase() === word.toLowerCase();
  return isStated || id === "off" ? "" : lastReason;
}

// The same for its row: of an instance that works, or may work, the reason is a past one.
export function rowReasonOf(instance, state) {
  const reason = reasonOf(instance, state);
  const isPast = ["serving", "slow", "unproven"].includes(state.id);
  return reason && isPast ? `last failure: ${reason}` : reason;
}

// For instances with their states: the headline's kind and text, and a short one for the tab.
export function headlineOf(all, status) {
  const n = { all: all.length, serving: 0, ready: 0, probing: 0, unavailable: 0, off: 0 };
  for (const { state } of all) n[state.group] += 1;
  const degraded = all.filter(({ state }) => state.group === "serving" && state.kind !== "good");
  const enabled = n.all - n.off;
  if (status === "draining") {
    return { kind: "wait", text: "The gateway is shutting down.", short: "Shutting down" };
  }
  if (!n.all) {
    const text = "No instance is configured: set a provider's key.";
    return { kind: "off", text, short: "No instance" };
  }
  if (!enabled) return { kind: "bad", text: allOff(n.all), short: "All off" };
  if (!n.serving && !n.ready) return noneServing(n);
  const isFull = n.serving + n.ready === enabled && !degraded.length;
  const kind = !isFull ? "weak" : n.serving ? "good" : "ready";
  return n.serving ? someServing(n, kind, degraded.length) : allReady(n, kind);
}

function someServing(n, kind, degraded) {
  let text = `${share(n.serving, n.all)} ${are(n.serving)} serving`;
  if (degraded === n.serving) text += ", but degraded";
  else if (degraded) text += `, ${degraded} of them degraded`;
  const rest = [];
  if (n.ready) rest.push(`${n.ready} ${are(n.ready)} ready`);
  if (n.off) rest.push(off(n));
  const short = n.serving === n.all ? "All serving" : `${n.serving} of ${n.all} serving`;
  return { kind, text: sentence(text, rest), short };
}

function allReady(n, kind) {
  const text = `${share(n.ready, n.all)} ${are(n.ready)} ready`;
  const short = n.ready === n.all ? "All ready" : `${n.ready} of ${n.all} ready`;
  return { kind, text: sentence(text, n.off ? [off(n)] : []), short };
}

function noneServing(n) {
  const rest = [];
  if (n.probing) rest.push(`${n.all === 1 ? "it" : n.probing} ${are(n.probing)} awaiting a probe`);
  if (n.off) rest.push(off(n));
  const first = n.all === 1 ? "The only instance is not serving" : "No instance is serving";
  return { kind: "bad", text: sentence(first, rest), short: "None serving" };
}

const sentence = (first, rest) => `${[first, rest.join(", ")].filter(Boolean).join("; ")}.`;
const are = (n) => (n === 1 ? "is" : "are");
const off = (n) => `${n.off} ${are(n.off)} off`;
const allOff = (n) =>
  n === 1 ? "The only instance is switched off." : "All instances are switched off.";

function share(n, all) {
  if (n < all) return `${n} of ${all} instances`;
  return { 1: "The only instance", 2: "Both instances" }[all] ?? `All ${all} instances`;
}

// The instances with problems, the worst first; "" if there are none.
export function problemsOf(all) {
  const problems = all.filter(({ state }) => !HEALTHY.includes(state.id));
  problems.sort((a, b) => ORDER.indexOf(a.state.id) - ORDER.indexOf(b.state.id) || health(a) - health(b));
  const texts = problems.slice(0, MOST_NAMED).map(problemText);
  if (problems.length > MOST_NAMED) texts.push(`and ${problems.length - MOST_NAMED} more`);
  return texts.join("  ·  ");
}

const health = ({ metrics }) => parseFloat(metrics.healthScore);

function problemText(instance) {
  const { name, state } = instance;
  const word = state.word[0].toLowerCase() + state.word.slice(1);
  const reason = reasonOf(instance, state);
  if (reason && state.id === "bad_key") return `${name}: ${reason}`; // which includes the word
  return `${name}: ${word}${reason ? `, ${reason}` : ""}`;
}

// Its figures, with a dash for each that was never measured.
export function figuresOf({ metrics }) {
  const judged = isJudged(metrics);
  return {
    health: judged ? metrics.healthScore : NONE,
    success: judged ? metrics.successRate : NONE,
    wait: metrics.avgLatencyMs === null ? NONE : metrics.latencyShare,
  };
}
