// The last 15 minutes in the gateway's buckets of 10 s, and their drawing.

import { svgElement } from "./elements.js";
import { plural } from "./format.js";

const BUCKET_S = 10;
const BUCKETS = 90;
export const SPAN_MS = BUCKETS * BUCKET_S * 1000;
const WIDTH = 180;
const HEIGHT = 30;
const FLOOR = 23; // successes are drawn above it, the share of failures below
const STEP = WIDTH / BUCKETS;
const [NUMBER, REQUESTS, FAILURES, FAILOVERS, TOKENS] = [0, 1, 2, 3, 4];

export class Timelines {
  constructor() {
    this.byName = new Map();
    this.offsetMs = 0;
  }

  // A bucket replaces an earlier version of itself; a snapshot replaces everything.
  merge(timelines, atMs, isSnapshot) {
    this.offsetMs = atMs - Date.now();
    if (isSnapshot) this.byName.clear();
    for (const [name, buckets] of Object.entries(timelines)) {
      if (!this.byName.has(name)) this.byName.set(name, new Map());
      const byNumber = this.byName.get(name);
      for (const bucket of buckets) byNumber.set(bucket[NUMBER], bucket);
      for (const number of byNumber.keys()) if (number < this.first()) byNumber.delete(number);
    }
  }

  first() {
    return Math.floor((Date.now() + this.offsetMs) / 1000 / BUCKET_S) - BUCKETS + 1;
  }

  buckets(name) {
    const first = this.first();
    return [...(this.byName.get(name)?.values() ?? [])].filter((b) => b[NUMBER] >= first);
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

  // The largest number of successes in a bucket of any of these: the scale they share.
  peak(names) {
    return Math.max(1, ...names.flatMap((n) => this.buckets(n).map(served)));
  }
}

const served = (bucket) => bucket[REQUESTS] - bucket[FAILURES];

export class Sparkline {
  constructor() {
    this.served = svgElement("path", { class: "served" });
    this.failed = svgElement("path", { class: "failed" });
    const floor = svgElement("path", { class: "floor", d: `M0 ${FLOOR + 0.5}H${WIDTH}` });
    this.node = svgElement(
      "svg",
      {
        class: "sparkline",
        viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
        preserveAspectRatio: "none",
        role: "img",
        "aria-label": "Last 15 minutes: no data",
      },
      floor,
      this.served,
      this.failed,
    );
  }

  draw(timelines, name, peak) {
    const first = timelines.first();
    let above = "";
    let below = "";
    for (const bucket of timelines.buckets(name)) {
      const x = (bucket[NUMBER] - first) * STEP;
      if (x > WIDTH - STEP) continue;
      if (served(bucket)) {
        const height = Math.max(1.5, (served(bucket) / peak) * (FLOOR - 1));
        above += bar(x, FLOOR - height, height);
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

function bar(x, y, height) {
  return `M${x.toFixed(1)} ${y.toFixed(1)}h${(STEP * 0.8).toFixed(1)}v${height.toFixed(1)}h-${(STEP * 0.8).toFixed(1)}z`;
}

function set(node, name, value) {
  if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}
