// One request as a row, which opens to show its attempts and why they failed.

import { element, icon, splitText } from "./elements.js";
import { NONE, count, duration, plural, time } from "./format.js";

const OUTCOMES = {
  success: "answered",
  failure: "failed",
  rate_limited: "rate limited",
  bad_key: "key refused",
  refused: "request refused",
  cancelled: "cancelled by the caller",
};
const CLIENT_CLOSED_REQUEST = 499;

export class Entry {
  constructor(request) {
    this.request = request;
    this.endedAt = request.endedAt;
    this.failed = request.failed;
    this.moved = request.failedOver;
    this.key = `${request.endedAt} ${request.id}`; // callers choose ids, which may repeat
  }

  get row() {
    this.node ??= rowOf(this);
    return this.node;
  }

  // Whether the row is open or has the focus: such a row is not removed.
  get isInUse() {
    return Boolean(this.node?.open || this.node?.contains(document.activeElement));
  }
}

function rowOf(entry) {
  const { request } = entry;
  const row = element("details", { "data-id": request.id }, summary(entry));
  row.classList.toggle("moved", entry.moved);
  row.classList.toggle("failed", entry.failed);
  row.addEventListener("toggle", () => {
    if (row.open && row.childElementCount === 1) row.append(details(request));
  });
  return row;
}

function summary(entry) {
  const { request } = entry;
  const attempts = request.attempts.length;
  const [kind, words] = kindOf(entry);
  const status = element("span", { class: "status", "data-kind": kind }, icon(kind));
  status.append(String(request.status), unseen(words));
  const tokens = request.completionTokens;
  const cells = [
    element("span", { class: "time" }, time(request.endedAt)),
    status,
    name("model", request.askedModel ?? "auto"),
    name("by", request.instance ?? "no instance"),
    cell("attempts", String(attempts), attempts === 1 ? "attempt" : "attempts"),
    cell("ttft", request.stream && request.firstMs ? duration(request.firstMs) : NONE, "TTFT"),
    cell("duration", duration(request.totalMs), "total"),
    cell("tokens", tokens ? count(tokens) : NONE, "tokens"),
  ];
  if (attempts > 1) cells[4].classList.add("many");
  return element("summary", { class: "request" }, ...cells);
}

// The icon and colour, and their meaning in words.
function kindOf({ request, failed, moved }) {
  if (failed) return ["bad", "failed"];
  if (request.status >= 400) return ["off", request.status === CLIENT_CLOSED_REQUEST ? "caller disconnected" : "refused"];
  if (moved) return ["weak", "failed over"];
  if (request.attempts.length > 1) return ["weak", "retried"];
  return ["good", "answered"];
}

const unseen = (words) => element("span", { class: "unseen" }, ` ${words} `);

// A name that is too long is cut in its middle; the details show all of it.
const name = (kind, text) => element("span", { class: `cut ${kind}`, title: text }, ...splitText(text));

// A number, with its meaning in words for screen readers.
const cell = (kind, value, words) => element("span", { class: `n ${kind}` }, value, unseen(words));

function details(request) {
  const facts = [
    ["Request", request.id],
    ["Endpoint", request.stream ? `${request.endpoint}, streamed` : request.endpoint],
    ["Routing", request.policy],
    ["Requested model", request.askedModel],
    ["Model", request.model],
    ["Caller", request.caller],
    ["Outcome", request.outcome.replaceAll("_", " ")],
    ["Tokens", tokensOf(request)],
    ["Hedged", request.hedged ? "yes" : null],
    ["Resumed", request.resumed ? plural(request.resumed, "time") : null],
  ];
  const shown = facts.filter(([, value]) => value);
  const items = [...request.attempts.map(attemptItem), ...exclusions(request)];
  const list = element("ol", { class: "attempts-made" }, ...items);
  const pairs = shown.map(([fact, value]) =>
    element("div", {}, element("dt", {}, fact), element("dd", {}, value)),
  );
  return element("div", { class: "details" }, list, element("dl", { class: "facts" }, ...pairs));
}

function tokensOf({ promptTokens, completionTokens }) {
  const known = [
    [promptTokens, "in"],
    [completionTokens, "out"],
  ];
  return known.flatMap(([n, direction]) => (n ? [`${count(n)} ${direction}`] : [])).join(", ");
}

// Why no instance was tried, or no further one.
function exclusions({ attempts, failed, why }) {
  const excluded = /(?:^|; )excluded: (.*)/s.exec(why ?? "")?.[1];
  const sentences = [];
  if (!attempts.length) sentences.push("No instance was tried.");
  if (excluded && failed) sentences.push(`Excluded: ${excluded}`);
  else if (why && !attempts.length) sentences.push(why);
  return sentences.length ? [element("li", { class: "none" }, sentences.join(" "))] : [];
}

function attemptItem(attempt) {
  const kinds = { success: "good", cancelled: "off", refused: "off", rate_limited: "wait" };
  const { outcome } = attempt;
  const kind = kinds[outcome] ?? "bad";
  return element(
    "li",
    { "data-kind": kind },
    icon(kind),
    element("span", { class: "by" }, attempt.instance),
    element("span", { class: "outcome" }, OUTCOMES[outcome] ?? outcome),
    element("span", { class: "why" }, attempt.reason || (attempt.status ? `HTTP ${attempt.status}` : "")),
    element("span", { class: "n" }, attempt.durationMs ? duration(attempt.durationMs) : NONE),
  );
}
