// The Control Center: reads the live feed and shows it.

import { ask, post, problemOf } from "./access.js";
import { Connect } from "./connect.js";
import { element, setData, setIcon, setText } from "./elements.js";
import { Feed } from "./feed.js";
import { NONE, count, moment, plural, time, usd } from "./format.js";
import { Instances } from "./instances.js";
import { Requests } from "./requests.js";
import { headlineOf, problemsOf } from "./states.js";
import { SPAN_MS, Sparkline, Timelines } from "./timeline.js";
import { TryIt } from "./tryit.js";

const byId = (id) => document.getElementById(id);
const TITLE_SIGNS = { good: "●", weak: "▲", bad: "✕" }; // similar to the icons on the page

const timelines = new Timelines();
const instances = new Instances(byId("instances"), toggle);
const requests = new Requests(byId("requests"), {
  empty: byId("no-requests"),
  pause: byId("pause"),
  choice: document.querySelector(".choice"),
});
const tryIt = new TryIt();
new Connect();
const tiles = makeTiles();
let gateway = null;
let goneSince = null;

const feed = new Feed(onEvent, showLink);
feed.open();
setInterval(() => gateway && show(), 1000);

function onEvent(name, data) {
  if (name === "snapshot") {
    instances.replace(data.providers);
    requests.replace(data.requests);
  }
  if (name === "instance") instances.update(data);
  if (name === "request") requests.add(data);
  else {
    if (data.gateway) {
      gateway = data.gateway;
      timelines.merge(data.timelines, gateway.at, name === "snapshot");
    }
    show();
  }
}

function show() {
  if (byId("link").dataset.state !== "live") return;
  instances.tick(timelines);
  const all = instances.all();
  showHeadline(headlineOf(all, gateway.status), problemsOf(all) || activity());
  showTiles();
  tryIt.offer(gateway.policies, [...instances.latest.values()]);
  const workers = gateway.workers > 1 ? ` · ${plural(gateway.workers, "worker")}` : "";
  setText(byId("about"), `${gateway.version}${workers}`);
}

function showHeadline({ kind, text, short }, reasons) {
  setText(byId("verdict"), text);
  setData(byId("verdict").parentElement, "kind", kind);
  setIcon(byId("verdict-icon"), kind);
  setText(byId("reasons"), reasons);
  const title = `${TITLE_SIGNS[kind] ?? "○"} ${short} – Nexus Gateway`;
  if (document.title !== title) document.title = title;
}

// Shown below the headline if no instance has a problem now.
function activity() {
  const { requests: all, failures, failovers } = timelines.totals("");
  const period = coversSpan() ? "in the last 15 minutes" : sinceWhen();
  if (!all) return `No requests ${period}.`;
  if (failures) return `${plural(failures, "request")} failed ${period}.`;
  if (failovers) return `No request failed ${period}: when an instance failed, another one took over.`;
  return `No failures ${period}.`;
}

// Whether the gateway has been up for the whole time shown; assumed if `since` is missing.
const coversSpan = () => !(gateway.at - gateway.since < SPAN_MS);
const sinceWhen = () => (gateway.since ? `since ${moment(gateway.since, gateway.at)}` : "since the start");

function makeTiles() {
  const tiles = {};
  const names = [
    ["rate", "Requests/s"],
    ["flight", "In flight"],
    ["failovers", "Fail-overs"],
    ["errors", "Errors"],
    ["tokens", "Tokens out"],
    ["cost", "Cost"],
  ];
  for (const [name, label] of names) {
    const value = element("span", { class: "value" }, NONE);
    const more = element("span", { class: "more" });
    const tile = element("div", { class: `tile ${name}` });
    tile.append(element("dt", {}, label), element("dd", {}, value, more));
    byId("tiles").append(tile);
    tiles[name] = { tile, value, more };
  }
  tiles.sparkline = new Sparkline();
  tiles.rate.tile.querySelector("dd").append(tiles.sparkline.node);
  return tiles;
}

function showTiles() {
  const { requests: all, failures, failovers, tokens } = timelines.totals("");
  const period = coversSpan() ? "in the last 15 min" : sinceWhen();
  const share = (n) => (all ? `${((n / all) * 100).toFixed(1)}% of ${count(all)}` : period);
  const texts = {
    rate: [gateway.requestsPerSecond.toFixed(1), `${count(all)} ${period}`],
    flight: [count(gateway.inFlight), "now"],
    failovers: [count(failovers), period],
    errors: [count(failures), share(failures)],
    tokens: [count(tokens), period],
    cost: cost(),
  };
  for (const [name, [value, more]] of Object.entries(texts)) {
    setText(tiles[name].value, value);
    setText(tiles[name].more, more);
  }
  setData(tiles.errors.tile, "kind", failures ? "bad" : "");
  tiles.sparkline.draw(timelines, "", timelines.peak([""]));
}

// The known cost, and the share of requests it covers.
function cost() {
  const { spentUsd, priced } = gateway;
  if (spentUsd === null) return [NONE, priced === 0 ? "no price known" : "no ledger or prices"];
  const all = (priced ?? 1) === 1; // also if there was no request
  const part = Math.min(99, Math.max(1, Math.round(priced * 100)));
  return [usd(spentUsd), all ? sinceWhen() : `for ${part}% of requests`];
}

async function toggle(name, enabled, button) {
  button.disabled = true;
  try {
    const response = await post("admin", "/v1/providers/toggle", { name, enabled });
    if (response.ok) {
      instances.update(await response.json());
      show();
      notify("");
    } else if (response.status === 401) notify(""); // the dialog was cancelled
    else notify(await problemOf(response));
  } catch {
    notify(`${name} could not be switched: the gateway did not respond.`);
  }
  button.disabled = false;
  button.focus();
}

function showLink(state, text) {
  if (state === "gone") goneSince ??= Date.now();
  else goneSince = null;
  const words = {
    opening: "Connecting",
    live: "Live",
    gone: `Disconnected since ${time(goneSince ?? Date.now())}, reconnecting`,
    locked: "Locked",
    closed: "Access denied",
  };
  setText(byId("link-text"), words[state]);
  if (byId("link").dataset.state === state) return;
  byId("link").dataset.state = state;
  document.body.classList.toggle("stale", state !== "live");
  const denied = { locked: "Enter a token to view this gateway.", closed: text };
  notify(denied[state] ?? "");
  byId("notice-button").hidden = state !== "locked";
  if (state in denied) {
    showHeadline({ kind: "off", text: `${words[state]}.`, short: words[state] }, "");
    byId("no-requests").hidden = true;
  }
  if (state === "locked") unlock();
  if (state === "gone") {
    const gone = { kind: "bad", text: "The gateway is not responding.", short: "Not responding" };
    showHeadline(gone, gateway ? "The last known state is shown below." : "");
  }
}

async function unlock() {
  if (!(await ask("viewer"))) return;
  showLink("opening", "");
  feed.open();
}

byId("notice-button").addEventListener("click", unlock);

function notify(text) {
  setText(byId("notice-text"), text);
  byId("notice").hidden = !text;
}
