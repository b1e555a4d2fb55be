// The last requests, each opening to show whom it was tried with and why that failed.

import { element, icon, setText } from "./elements.js";
import { NONE, count, duration, plural, time } from "./format.js";

const KEPT = 200;
const OUTCOMES = {
  success: "answered",
  failure: "failed",
  rate_limited: "rate limited",
  bad_key: "key refused",
  refused: "refused the request",
  cancelled: "ended by the caller",
};

export class Requests {
  constructor(list, { empty, pause, choice }) {
    this.list = list;
    this.empty = empty;
    this.pause = pause;
    this.waiting = [];
    this.paused = false;
    // A list must not move away from under the pointer; a finger leaves none behind.
    this.pointed = false;
    list.addEventListener("pointerenter", (event) => {
      this.pointed = event.pointerType === "mouse";
    });
    list.addEventListener("pointerleave", () => {
      this.pointed = false;
      this.flush();
    });
    pause.addEventListener("click", () => this.setPaused(!this.paused));
    for (const button of choice.querySelectorAll("button")) {
      button.addEventListener("click", () => {
        for (const other of choice.querySelectorAll("button")) {
          other.setAttribute("aria-pressed", String(other === button));
        }
        list.dataset.show = button.dataset.show;
        this.showEmpty();
      });
    }
    list.dataset.show = "all";
  }

  setPaused(paused) {
    this.paused = paused;
    this.pause.setAttribute("aria-pressed", String(paused));
    this.flush();
    this.showPause();
  }

  get held() {
    return this.paused || this.pointed;
  }

  showPause() {
    const more = this.waiting.length;
    const word = this.paused ? "Go on" : "Pause";
    setText(this.pause, this.held && more ? `${word} (${more} new)` : word);
  }

  replace(requests) {
    const opened = new Set();
    for (const row of this.list.querySelectorAll("details[open]")) opened.add(row.dataset.id);
    this.list.replaceChildren();
    this.waiting = [];
    for (const request of requests) {
      const row = this.row(request);
      row.open = opened.has(request.id);
      this.list.prepend(row);
    }
    this.showEmpty();
  }

  // Rows are made once for each frame: under load many come at a time.
  hear(request) {
    this.waiting.push(request);
    if (this.waiting.length > KEPT) this.waiting.shift();
    if (this.held) this.showPause();
    else if (!this.drawing) {
      this.drawing = true;
      setTimeout(() => this.flush(), 0);
    }
  }

  flush() {
    this.drawing = false;
    if (this.held) return;
    this.showPause();
    for (const request of this.waiting) this.place(this.row(request));
    this.waiting = [];
    while (this.list.childElementCount > KEPT) this.list.lastElementChild.remove();
    this.showEmpty();
  }

  // Nearly always at the top; other workers tell theirs a moment later.
  place(row) {
    let below = this.list.firstElementChild;
    while (below && below.endedAt > row.endedAt) below = below.nextElementSibling;
    this.list.insertBefore(row, below);
  }

  showEmpty() {
    const shown = this.list.dataset.show === "all" ? "*" : `.${this.list.dataset.show}`;
    const nothing = this.list.querySelector(`:scope > ${shown}`) === null;
    this.empty.hidden = !nothing;
    setText(
      this.empty,
      this.list.childElementCount
        ? "None of the last requests."
        : "None yet. Send one with Try it, or from any OpenAI or Anthropic client.",
    );
  }

  row(request) {
    const moved = request.attempts.length > 1 || request.resumed > 0;
    const row = element("details", { "data-id": request.id });
    row.endedAt = request.endedAt;
    row.classList.toggle("moved", moved);
    row.classList.toggle("failed", request.failed);
    row.append(summary(request, moved));
    row.addEventListener("toggle", () => {
      if (row.open && row.childElementCount === 1) row.append(story(request));
    });
    return row;
  }
}

function summary(request, moved) {
  const kind = request.failed ? "bad" : request.status >= 400 ? "off" : moved ? "weak" : "good";
  const status = element("span", { class: "status", "data-kind": kind }, icon(kind));
  status.append(String(request.status));
  const attempts = request.attempts.length;
  const tokens = request.completionTokens;
  const cells = [
    element("span", { class: "time" }, time(request.endedAt)),
    status,
    element("span", { class: "model" }, request.askedModel ?? "auto"),
    element("span", { class: "by" }, request.instance ?? "nobody"),
    cell("attempts", String(attempts), plural(attempts, "attempt")),
    cell("ttft", request.stream && request.firstMs ? duration(request.firstMs) : NONE, "TTFT"),
    cell("duration", duration(request.totalMs), "in all"),
    cell("tokens", tokens ? count(tokens) : NONE, "tokens"),
  ];
  if (moved) cells[4].classList.add("many");
  return element("summary", { class: "request" }, ...cells);
}

// A number, and in words what it is for those who don't see its column.
function cell(name, value, words) {
  const said = element("span", { class: "unseen" }, ` ${words} `);
  return element("span", { class: `n ${name}` }, value, said);
}

function story(request) {
  const facts = [
    ["Request", request.id],
    ["Door", request.stream ? `${request.endpoint}, streamed` : request.endpoint],
    ["Routing", request.policy],
    ["Model", request.model],
    ["Caller", request.caller],
    ["Outcome", request.outcome.replaceAll("_", " ")],
    ["Tokens", tokensOf(request)],
    ["Hedged", request.hedged ? "yes" : null],
    ["Resumed", request.resumed ? plural(request.resumed, "time") : null],
  ];
  const shown = facts.filter(([, value]) => value);
  const list = element("ol", { class: "attempts-made" }, ...request.attempts.map(attempt));
  if (!request.attempts.length) list.append(element("li", {}, "Nobody was asked."));
  const pairs = shown.map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, value)),
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
