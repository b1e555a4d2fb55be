// The last 15 minutes, in buckets of 10 s as the gateway counts them, and how they are drawn.

import { drawn } from "./elements.js";
import { plural } from "./format.js";

const BUCKET_S = 10;
const BUCKETS = 90;
export const SPAN_MS = BUCKETS * BUCKET_S * 1000;
const WIDTH = 180;
const HEIGHT = 30;
const FLOOR = 23; // what was served stands on it, the share that failed hangs below
const STEP = WIDTH / BUCKETS;
const [NUMBER, REQUESTS, FAILURES, FAILOVERS, TOKENS] = [0, 1, 2, 3, 4];

export class Timelines {
  constructor() {
    this.of = new Map();
    this.offsetMs = 0;
  }

  // What the gateway tells takes the place of what it told of the same buckets before.
  hear(found, atMs, afresh) {
    this.offsetMs = atMs - Date.now();
    if (afresh) this.of.clear();
    for (const [name, buckets] of Object.entries(found)) {
      if (!this.of.has(name)) this.of.set(name, new Map());
      const known = this.of.get(name);
      for (const bucket of buckets) known.set(bucket[NUMBER], bucket);
      for (const number of known.keys()) if (number < this.first()) known.delete(number);
    }
  }

  first() {
    return Math.floor((Date.now() + this.offsetMs) / 1000 / BUCKET_S) - BUCKETS + 1;
  }

  buckets(name) {
    const first = this.first();
    return [...(this.of.get(name)?.values() ?? [])].filter((b) => b[NUMBER] >= first);
  }

  totals(name) {
    const totals = { requests: 0, failures: 0, failovers: 0, tokens: 0 };
    for (const bucket of this.buckets(name)) {
      totals.requests += bucket[REQUESTS];
      totals.failures += bucket[FAILURES];
      totals.failovers += bucket[FAILOVERS];
      totals.tokens += bucket[TOKENS];
    }
    return totals;
  }

  // The most that a bucket of any of these served: one scale shows who serves most.
  most(names) {
    return Math.max(1, ...names.flatMap((n) => this.buckets(n).map(served)));
  }
}

const served = (bucket) => bucket[REQUESTS] - bucket[FAILURES];

export class Sparkline {
  constructor() {
    this.served = drawn("path", { class: "served" });
    this.failed = drawn("path", { class: "failed" });
    const floor = drawn("path", { class: "floor", d: `M0 ${FLOOR + 0.5}H${WIDTH}` });
    this.node = drawn(
      "svg",
      {
        class: "sparkline",
        viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
        preserveAspectRatio: "none",
        role: "img",
        "aria-label": "Last 15 minutes: nothing is known",
      },
      floor,
      this.served,
      this.failed,
    );
  }

  draw(timelines, name, most) {
    const first = timelines.first();
    let above = "";
    let below = "";
    for (const bucket of timelines.buckets(name)) {
      const x = (bucket[NUMBER] - first) * STEP;
      if (x > WIDTH - STEP) continue;
      if (served(bucket)) {
        const tall = Math.max(1.5, (served(bucket) / most) * (FLOOR - 1));
        above += bar(x, FLOOR - tall, tall);
      }
      if (bucket[FAILURES]) {
        const share = bucket[FAILURES] / bucket[REQUESTS];
        below += bar(x, FLOOR + 1, Math.max(2.5, share * (HEIGHT - FLOOR - 1)));
      }
    }
    set(this.served, "d", above);
    set(this.failed, "d", below);
    const { requests, failures } = timelines.totals(name);
    set(this.node, "aria-label", `Last 15 minutes: ${plural(requests, "request")}, ${failures} failed`);
  }
}

function bar(x, y, tall) {
  return `M${x.toFixed(1)} ${y.toFixed(1)}h${(STEP * 0.8).toFixed(1)}v${tall.toFixed(1)}h-${(STEP * 0.8).toFixed(1)}z`;
}

function set(node, name, value) {
  if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}
