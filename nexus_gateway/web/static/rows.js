// One request as a row, which opens to show whom it was tried with and why that failed.

import { element, ends, icon } from "./elements.js";
import { NONE, count, duration, plural, time } from "./format.js";

const OUTCOMES = {
  success: "answered",
  failure: "failed",
  rate_limited: "rate limited",
  bad_key: "key refused",
  refused: "refused the request",
  cancelled: "ended by the caller",
};
const LEFT = 499; // the status of a request whose caller did not wait

export class Entry {
  constructor(request) {
    this.request = request;
    this.endedAt = request.endedAt;
    this.failed = request.failed;
    this.moved = request.failedOver;
    this.key = `${request.endedAt} ${request.id}`; // callers may give two the same id
  }

  get row() {
    this.made ??= rowOf(this);
    return this.made;
  }

  // Whether somebody reads it: such a row is never taken away.
  get isRead() {
    return Boolean(this.made?.open || this.made?.contains(document.activeElement));
  }
}

function rowOf(entry) {
  const { request } = entry;
  const row = element("details", { "data-id": request.id }, summary(entry));
  row.classList.toggle("moved", entry.moved);
  row.classList.toggle("failed", entry.failed);
  row.addEventListener("toggle", () => {
    if (row.open && row.childElementCount === 1) row.append(story(request));
  });
  return row;
}

function summary(entry) {
  const { request } = entry;
  const tries = request.attempts.length;
  const [kind, word] = kindOf(entry);
  const status = element("span", { class: "status", "data-kind": kind }, icon(kind));
  status.append(String(request.status), unseen(word));
  const tokens = request.completionTokens;
  const cells = [
    element("span", { class: "time" }, time(request.endedAt)),
    status,
    name("model", request.askedModel ?? "auto"),
    name("by", request.instance ?? "nobody"),
    cell("attempts", String(tries), tries === 1 ? "attempt" : "attempts"),
    cell("ttft", request.stream && request.firstMs ? duration(request.firstMs) : NONE, "TTFT"),
    cell("duration", duration(request.totalMs), "in all"),
    cell("tokens", tokens ? count(tokens) : NONE, "tokens"),
  ];
  if (tries > 1) cells[4].classList.add("many");
  return element("summary", { class: "request" }, ...cells);
}

// Which sign and colour, and what these say in a word.
function kindOf({ request, failed, moved }) {
  if (failed) return ["bad", "failed"];
  if (request.status >= 400) return ["off", request.status === LEFT ? "caller left" : "refused"];
  if (moved) return ["weak", "failed over"];
  if (request.attempts.length > 1) return ["weak", "tried again"];
  return ["good", "answered"];
}

const unseen = (words) => element("span", { class: "unseen" }, ` ${words} `);

// What is too long for its place is cut in its middle; the story has the whole.
const name = (kind, text) => element("span", { class: `cut ${kind}`, title: text }, ...ends(text));

// A number, and in words what it is for those who don't see its column.
const cell = (kind, value, words) => element("span", { class: `n ${kind}` }, value, unseen(words));

function story(request) {
  const facts = [
    ["Request", request.id],
    ["Door", request.stream ? `${request.endpoint}, streamed` : request.endpoint],
    ["Routing", request.policy],
    ["Model asked", request.askedModel],
    ["Model", request.model],
    ["Caller", request.caller],
    ["Outcome", request.outcome.replaceAll("_", " ")],
    ["Tokens", tokensOf(request)],
    ["Hedged", request.hedged ? "yes" : null],
    ["Resumed", request.resumed ? plural(request.resumed, "time") : null],
  ];
  const shown = facts.filter(([, value]) => value);
  const tried = [...request.attempts.map(attempt), ...notAsked(request)];
  const list = element("ol", { class: "attempts-made" }, ...tried);
  const pairs = shown.map(([fact, value]) =>
    element("div", {}, element("dt", {}, fact), element("dd", {}, value)),
  );
  return element("div", { class: "story" }, list, element("dl", { class: "facts" }, ...pairs));
}

function tokensOf({ promptTokens, completionTokens }) {
  const known = [
    [promptTokens, "in"],
    [completionTokens, "out"],
  ];
  return known.flatMap(([n, way]) => (n ? [`${count(n)} ${way}`] : [])).join(", ");
}

// Why nobody was asked, or nobody else.
function notAsked({ attempts, failed, why }) {
  const leftOut = /(?:^|; )(left out: .*)/s.exec(why ?? "")?.[1];
  const told = [];
  if (!attempts.length) told.push("Nobody was asked.");
  if (leftOut && failed) told.push(`L${leftOut.slice(1)}`);
  else if (why && !attempts.length) told.push(why);
  return told.length ? [element("li", { class: "none" }, told.join(" "))] : [];
}

function attempt(made) {
  const kind = { success: "good", cancelled: "off", refused: "off", rate_limited: "wait" };
  const outcome = made.outcome;
  return element(
    "li",
    { "data-kind": kind[outcome] ?? "bad" },
    icon(kind[outcome] ?? "bad"),
    element("span", { class: "by" }, made.instance),
    element("span", { class: "outcome" }, OUTCOMES[outcome] ?? outcome),
    element("span", { class: "why" }, made.reason || (made.status ? `HTTP ${made.status}` : "")),
    element("span", { class: "n" }, made.durationMs ? duration(made.durationMs) : NONE),
  );
}
