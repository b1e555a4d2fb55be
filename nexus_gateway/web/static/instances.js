// The instances: who serves, who suffers, why, and the switch.

import { element, icon, setData, setIcon, setText } from "./elements.js";
import { NONE, countdown, count, duration } from "./format.js";
import { Sparkline } from "./timeline.js";

const WEAK_SUCCESS = 90;
const BAD_SUCCESS = 50;
const WEAK_WAIT = 50;
const PARKED = {
  bad_key: ["bad", "Key refused"],
  rate_limited: ["wait", "Rate limited"],
  resting: ["wait", "Resting"],
};

// Returns kind (which icon and colour), word, and what is said beside it.
export function stateOf(instance) {
  const parkedMs = left(instance, "parkedForMs");
  if (!instance.enabled) return { kind: "off", word: "Off" };
  if (instance.parkReason) {
    const [kind, word] = PARKED[instance.parkReason] ?? ["wait", instance.parkReason];
    return { kind, word, until: `back in ${countdown(parkedMs)}` };
  }
  if (instance.circuitState === "OPEN") {
    const until = `probe in ${countdown(left(instance, "probeInMs"))}`;
    return { kind: "bad", word: "Circuit open", until };
  }
  if (instance.circuitState === "HALF_OPEN") {
    return { kind: "probe", word: "Half open", until: "next request probes it" };
  }
  const { successRate, latencyShare } = instance.metrics;
  if (parseFloat(successRate) < BAD_SUCCESS) return { kind: "bad", word: "Failing" };
  if (parseFloat(successRate) < WEAK_SUCCESS) return { kind: "weak", word: "Failing at times" };
  if (parseFloat(latencyShare) > WEAK_WAIT) return { kind: "weak", word: "Slow" };
  return { kind: "good", word: "Serving" };
}

function left(instance, name) {
  return Math.max(0, instance[name] - (Date.now() - instance.heardAt));
}

// Why its last request failed, where the state's word does not say it already.
export function reasonOf(instance, state) {
  const reason = instance.lastReason ?? "";
  // Off is the operator's word and needs no other reason.
  return state.kind === "off" || reason.toLowerCase() === state.word.toLowerCase() ? "" : reason;
}

export const serves = (state) => ["good", "weak", "probe"].includes(state.kind);

const CELLS = [
  ["health", "Health"],
  ["success", "Success"],
  ["wait", "Wait"],
  ["ttft", "TTFT p50 / p95"],
  ["speed", "Tokens/s"],
  ["flight", "In flight"],
  ["history", "Last 15 minutes"],
  ["quota", "Quota left"],
];

class Row {
  constructor(name, toggle) {
    this.icon = icon("off");
    this.word = element("span", { class: "word" });
    this.until = element("span", { class: "until" });
    this.reason = element("p", { class: "reason" });
    this.name = element("h3", {}, name);
    this.model = element("p", { class: "model" });
    this.switch = element("button", { type: "button", role: "switch", class: "switch" });
    this.switch.setAttribute("aria-label", `${name} takes requests`);
    this.switch.addEventListener("click", () => {
      toggle(name, this.switch.getAttribute("aria-checked") !== "true", this.switch);
    });
    this.sparkline = new Sparkline();
    this.bar = element("span", { class: "bar-fill" });
    this.values = {};
    this.node = element(
      "li",
      { class: "instance" },
      element("div", { class: "who" }, this.name, this.model),
      element(
        "div",
        { class: "state" },
        element("p", { class: "now" }, this.icon, this.word, this.until),
        this.reason,
      ),
      element("dl", { class: "cells" }, ...CELLS.map(([key, label]) => this.cell(key, label))),
      element("div", { class: "toggle" }, this.switch),
    );
  }

  cell(key, label) {
    const value = element("dd", key === "history" ? { class: "history" } : { class: "n" });
    if (key === "history") value.append(this.sparkline.node);
    else this.values[key] = value.appendChild(element("span"));
    if (key === "health") {
      value.append(element("span", { class: "bar-track", "aria-hidden": "true" }, this.bar));
    }
    return element("div", { class: `cell ${key}` }, element("dt", {}, label), value);
  }

  show(instance) {
    const state = stateOf(instance);
    const metrics = instance.metrics;
    setData(this.node, "kind", state.kind);
    setIcon(this.icon, state.kind);
    setText(this.word, state.word);
    setText(this.until, state.until ?? "");
    setText(this.reason, reasonOf(instance, state));
    setText(this.model, instance.model);
    this.model.title = instance.model;
    const used = metrics.totalRequests > 0;
    setText(this.values.health, used ? metrics.healthScore : NONE);
    this.bar.style.setProperty("width", used ? metrics.healthScore : "0%");
    setText(this.values.success, used ? metrics.successRate : NONE);
    setText(this.values.wait, used ? metrics.latencyShare : NONE);
    const p50 = duration(metrics.ttftP50Ms);
    const p95 = duration(metrics.ttftP95Ms);
    setText(this.values.ttft, p50 === NONE ? NONE : `${p50} / ${p95}`);
    setText(this.values.speed, metrics.tokensPerSecond === null ? NONE : count(metrics.tokensPerSecond));
    setText(this.values.flight, count(instance.inFlight));
    setText(this.values.quota, instance.quotaLeft ?? NONE);
    this.switch.setAttribute("aria-checked", String(instance.enabled));
  }
}

export class Instances {
  constructor(list, toggle) {
    this.list = list;
    this.toggle = toggle;
    this.known = new Map();
    this.rows = new Map();
  }

  replace(instances) {
    this.list.replaceChildren();
    this.known.clear();
    this.rows.clear();
    for (const instance of instances) this.hear(instance);
  }

  hear(instance) {
    this.known.set(instance.name, { ...instance, heardAt: Date.now() });
    if (!this.rows.has(instance.name)) {
      const row = new Row(instance.name, this.toggle);
      this.rows.set(instance.name, row);
      this.list.append(row.node);
    }
    this.rows.get(instance.name).show(this.known.get(instance.name));
  }

  // What runs down, and the history that moves on.
  tick(timelines) {
    const most = timelines.most([...this.known.keys()]);
    for (const [name, row] of this.rows) {
      row.show(this.known.get(name));
      row.sparkline.draw(timelines, name, most);
    }
  }
}
