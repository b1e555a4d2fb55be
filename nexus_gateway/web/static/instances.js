// The instances: a row each, with its state, its figures and its switch.

import { element, icon, setData, setIcon, setText, unfoldButton } from "./elements.js";
import { NONE, count, duration } from "./format.js";
import { figuresOf, rowReasonOf, stateOf } from "./states.js";
import { Sparkline } from "./timeline.js";

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
    this.count = element("summary");
    this.models = element("div");
    this.folded = element("details", { class: "models" }, this.count, this.models);
    this.switch = element("button", { type: "button", role: "switch", class: "switch" });
    this.switch.setAttribute("aria-label", `${name} accepts requests`);
    this.switch.addEventListener("click", () => {
      toggle(name, this.switch.getAttribute("aria-checked") !== "true", this.switch);
    });
    this.sparkline = new Sparkline();
    this.bar = element("span", { class: "bar-fill" });
    this.values = {};
    this.node = element(
      "li",
      { class: "instance" },
      (this.identity = element("div", { class: "identity" }, this.name, this.model)),
      element(
        "div",
        { class: "state" },
        element("p", { class: "now" }, this.icon, this.word, this.until),
        this.reason,
      ),
      element("dl", { class: "cells" }, ...CELLS.map(([key, label]) => this.cell(key, label))),
      element("div", { class: "toggle" }, this.switch),
      unfoldButton(name),
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

  // `instance` includes its state.
  show(instance) {
    const { state, metrics } = instance;
    setData(this.node, "kind", state.kind);
    setIcon(this.icon, state.kind);
    setText(this.word, state.word);
    setText(this.until, state.until);
    setText(this.reason, rowReasonOf(instance, state));
    setText(this.model, instance.model);
    this.model.title = instance.model;
    this.showModels(instance);
    const figures = figuresOf(instance);
    for (const [name, text] of Object.entries(figures)) setText(this.values[name], text);
    this.bar.style.setProperty("width", figures.health === NONE ? "0%" : figures.health);
    const p50 = duration(metrics.ttftP50Ms);
    const p95 = duration(metrics.ttftP95Ms);
    setText(this.values.ttft, p50 === NONE ? NONE : `${p50} / ${p95}`);
    setText(this.values.speed, metrics.tokensPerSecond === null ? NONE : count(metrics.tokensPerSecond));
    setText(this.values.flight, count(instance.inFlight));
    setText(this.values.quota, instance.quotaLeft ?? NONE);
    this.switch.setAttribute("aria-checked", String(instance.enabled));
  }

  // Limits and circuits belong to a model; with a single one, the row itself shows them.
  showModels(instance) {
    const { enabled, models = [], ageMs } = instance;
    if (models.length < 2) {
      this.folded.remove();
      return;
    }
    if (!this.folded.isConnected) this.identity.append(this.folded);
    setText(this.count, `${models.length} models`);
    const texts = models.map((model) => {
      const state = stateOf({ enabled, ...model }, ageMs);
      const reason = rowReasonOf(model, state);
      return [`${model.model}: ${state.word}`, state.until, reason].filter(Boolean).join(", ");
    });
    while (this.models.childElementCount > texts.length) this.models.lastChild.remove();
    texts.forEach((text, n) => setText(this.models.children[n] ?? this.addModel(), text));
  }

  addModel() {
    return this.models.appendChild(element("p"));
  }
}

export class Instances {
  constructor(list, toggle) {
    this.list = list;
    this.toggle = toggle;
    this.latest = new Map();
    this.rows = new Map();
  }

  replace(instances) {
    this.list.replaceChildren();
    this.latest.clear();
    this.rows.clear();
    for (const instance of instances) this.update(instance);
  }

  update(instance) {
    this.latest.set(instance.name, { ...instance, receivedAt: Date.now() });
    if (!this.rows.has(instance.name)) {
      const row = new Row(instance.name, this.toggle);
      this.rows.set(instance.name, row);
      this.list.append(row.node);
    }
    this.rows.get(instance.name).show(this.now(instance.name));
  }

  // The instance with its current state.
  now(name) {
    const instance = this.latest.get(name);
    const ageMs = Date.now() - instance.receivedAt;
    return { ...instance, ageMs, state: stateOf(instance, ageMs) };
  }

  all() {
    return [...this.latest.keys()].map((name) => this.now(name));
  }

  // Redraws the countdowns and the timelines.
  tick(timelines) {
    const peak = timelines.peak([...this.latest.keys()]);
    for (const [name, row] of this.rows) {
      row.show(this.now(name));
      row.sparkline.draw(timelines, name, peak);
    }
  }
}
