// What is said of an instance, and of all of them: no element, no clock, nothing kept.
//
// One table for the rows, the headline, the sentence below it and the tab, so that all of them
// count alike. tests/test_control_center.py holds every cell of it.

import { NONE, countdown } from "./format.js";

const WEAK_SUCCESS = 90;
const BAD_SUCCESS = 50;
const WEAK_WAIT = 50;
const NAMED = 2; // in the sentence

// The most troubled first: in this order they are named. `does` is what the headline counts:
//   serves  requests go to it, and some of them were answered
//   ready   they would; none has been lately
//   probe   the next request that goes to it will tell
//   out     it gets none, or has answered none
//   off     as somebody wanted it
const STATES = {
  bad_key: { word: "Key refused", kind: "bad", does: "out" },
  open: { word: "Circuit open", kind: "bad", does: "out" },
  failing: { word: "Failing", kind: "bad", does: "out" },
  half_open: { word: "Half open", kind: "probe", does: "probe" },
  unproven: { word: "Unproven", kind: "probe", does: "probe" },
  rate_limited: { word: "Rate limited", kind: "wait", does: "out" },
  resting: { word: "Resting", kind: "wait", does: "out" },
  parked: { word: "Parked", kind: "wait", does: "out" },
  often: { word: "Failing often", kind: "bad", does: "serves" },
  at_times: { word: "Failing at times", kind: "weak", does: "serves" },
  slow: { word: "Slow", kind: "weak", does: "serves" },
  serving: { word: "Serving", kind: "good", does: "serves" },
  ready: { word: "Ready", kind: "ready", does: "ready" },
  off: { word: "Off", kind: "off", does: "off" },
};
const ORDER = Object.keys(STATES);
const PARKS = ["rate_limited", "resting"];
const UNTROUBLED = ["serving", "ready", "off"];

// Whether a success or a failure has been seen: without one its figures are only hopes.
export function isJudged({ totalRequests, judged = totalRequests > 0 }) {
  return judged;
}

// Returns id and, of the table, word, kind (which sign and colour) and does; and what is said
// beside the word. `agoMs`: how long ago this was heard of the instance.
export function stateOf(instance, agoMs = 0) {
  const id = stateIdOf(instance, agoMs);
  return { id, ...STATES[id], until: untilOf(id, instance, agoMs) };
}

function stateIdOf(instance, agoMs) {
  const { enabled, circuitState, parkReason } = instance;
  if (!enabled) return "off";
  if (parkReason === "bad_key") return "bad_key"; // somebody must do something about it
  const opensLast = circuitState === "OPEN" && probeInMs(instance, agoMs) > parkedMs(instance, agoMs);
  if (parkReason && !opensLast) return PARKS.includes(parkReason) ? parkReason : "parked";
  if (circuitState === "OPEN") return "open";
  if (circuitState === "HALF_OPEN") return "half_open";
  return stateIdWhereClosed(instance);
}

function stateIdWhereClosed({ lastReason, metrics }) {
  const success = parseFloat(metrics.successRate);
  // Its key, its limit or its model was the trouble, which no rate counts, and nothing since.
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
  if (STATES[id].does === "probe") return "awaits a probe"; // or its end
  if (id === "ready") return instance.metrics.totalRequests ? "no answer lately" : "not asked yet";
  if (STATES[id].does !== "out" || id === "failing") return "";
  const then = instance.circuitState === "CLOSED" ? "back" : "probe";
  const lastMs = Math.max(parkedMs(instance, agoMs), probeInMs(instance, agoMs));
  return `${then} in ${countdown(lastMs)}`;
}

// Why its last request failed, where the word does not say it already.
export function reasonOf({ lastReason }, { id, word }) {
  const said = !lastReason || lastReason.toLowerCase() === word.toLowerCase();
  // Off is the operator's word and needs no other reason.
  return said || id === "off" ? "" : lastReason;
}

// The same in its row: where it goes well, or may, a reason is of the past.
export function rowReasonOf(instance, state) {
  const reason = reasonOf(instance, state);
  const past = ["serving", "slow", "unproven"].includes(state.id);
  return reason && past ? `last time: ${reason}` : reason;
}

// Of instances with their states: the headline's kind and text, and a short one for the tab.
export function verdictOf(all, status) {
  const n = { all: all.length, serves: 0, ready: 0, probe: 0, out: 0, off: 0 };
  for (const { state } of all) n[state.does] += 1;
  const badly = all.filter(({ state }) => state.does === "serves" && state.kind !== "good").length;
  const wanted = n.all - n.off;
  if (status === "draining") {
    return { kind: "wait", text: "The gateway is shutting down.", short: "Shutting down" };
  }
  if (!n.all) {
    return { kind: "off", text: "There is no instance: set a provider's key.", short: "No instance" };
  }
  if (!wanted) return { kind: "bad", text: allSwitchedOff(n.all), short: "All off" };
  if (!n.serves && !n.ready) return nobody(n);
  const kind = n.serves + n.ready < wanted || badly ? "weak" : n.serves ? "good" : "ready";
  return n.serves ? some(n, kind, badly) : ready(n, kind);
}

function some(n, kind, badly) {
  let text = `${share(n.serves, n.all)} ${verb(n.serves, "serves", "serve")}`;
  if (badly === n.serves) text += " badly";
  else if (badly) text += `, ${badly} of them badly`;
  const rest = [];
  if (n.ready) rest.push(`${n.ready} ${verb(n.ready, "is", "are")} ready`);
  if (n.off) rest.push(off(n));
  const short = n.serves === n.all ? "All serve" : `${n.serves} of ${n.all} ${verb(n.serves, "serves", "serve")}`;
  return { kind, text: sentences(text, rest), short };
}

function ready(n, kind) {
  const text = `${share(n.ready, n.all)} ${verb(n.ready, "is", "are")} ready`;
  const short = n.ready === n.all ? "All ready" : `${n.ready} of ${n.all} ready`;
  return { kind, text: sentences(text, n.off ? [off(n)] : []), short };
}

function nobody(n) {
  const rest = [];
  const who = n.all === 1 ? "the one instance" : n.probe;
  if (n.probe) rest.push(`${who} ${verb(n.probe, "waits", "wait")} for a probe`);
  if (n.off) rest.push(off(n));
  return { kind: "bad", text: sentences("Nobody serves", rest), short: "Nobody serves" };
}

const sentences = (first, rest) => `${[first, rest.join(", ")].filter(Boolean).join("; ")}.`;
const off = (n) => `${n.off} ${verb(n.off, "is", "are")} off`;
const verb = (n, one, many) => (n === 1 ? one : many);
const allSwitchedOff = (n) =>
  n === 1 ? "The one instance is switched off." : "Every instance is switched off.";

function share(n, all) {
  if (n < all) return `${n} of ${all} instances`;
  return { 1: "The one instance", 2: "Both instances" }[all] ?? `All ${all} instances`;
}

// Who is in trouble, the worst first; "" where nobody is.
export function troublesOf(all) {
  const troubled = all.filter(({ state }) => !UNTROUBLED.includes(state.id));
  troubled.sort((a, b) => ORDER.indexOf(a.state.id) - ORDER.indexOf(b.state.id) || health(a) - health(b));
  const said = troubled.slice(0, NAMED).map(trouble);
  if (troubled.length > NAMED) said.push(`and ${troubled.length - NAMED} more`);
  return said.join("  ·  ");
}

const health = ({ metrics }) => parseFloat(metrics.healthScore);

function trouble(instance) {
  const { name, state } = instance;
  const word = state.word[0].toLowerCase() + state.word.slice(1);
  const reason = reasonOf(instance, state);
  if (reason && state.id === "bad_key") return `${name}: ${reason}`; // it says all of the word
  return `${name}: ${word}${reason ? `, ${reason}` : ""}`;
}

// Its figures, a dash for each that was never measured.
export function figuresOf({ metrics }) {
  const judged = isJudged(metrics);
  return {
    health: judged ? metrics.healthScore : NONE,
    success: judged ? metrics.successRate : NONE,
    wait: metrics.avgLatencyMs === null ? NONE : metrics.latencyShare,
  };
}
