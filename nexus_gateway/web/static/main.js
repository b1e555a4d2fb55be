// The Control Center: hears the feed, and shows it.

import { ask, post, problemOf } from "./access.js";
import { element, setData, setIcon, setText } from "./elements.js";
import { Feed } from "./feed.js";
import { NONE, count, moment, plural, time, usd } from "./format.js";
import { Instances } from "./instances.js";
import { Requests } from "./requests.js";
import { troublesOf, verdictOf } from "./states.js";
import { SPAN_MS, Sparkline, Timelines } from "./timeline.js";
import { TryIt } from "./tryit.js";

const byId = (id) => document.getElementById(id);
const SIGNS = { good: "●", weak: "▲", bad: "✕" }; // as drawn on the page

const timelines = new Timelines();
const instances = new Instances(byId("instances"), toggle);
const requests = new Requests(byId("requests"), {
  empty: byId("no-requests"),
  pause: byId("pause"),
  choice: document.querySelector(".choice"),
});
const tryIt = new TryIt();
const tiles = makeTiles();
let gateway = null;
let goneSince = null;

const feed = new Feed(hear, showLink);
feed.open();
setInterval(() => gateway && show(), 1000);

function hear(name, data) {
  if (name === "snapshot") {
    instances.replace(data.providers);
    requests.replace(data.requests);
  }
  if (name === "instance") instances.hear(data);
  if (name === "request") requests.hear(data);
  else {
    if (data.gateway) {
      gateway = data.gateway;
      timelines.hear(data.timelines, gateway.at, name === "snapshot");
    }
    show();
  }
}

function show() {
  if (byId("link").dataset.state !== "live") return;
  instances.tick(timelines);
  showVerdict();
  showTiles();
  tryIt.offer(gateway.policies, [...instances.known.values()]);
  const workers = gateway.workers > 1 ? ` · ${plural(gateway.workers, "worker")}` : "";
  setText(byId("about"), `${gateway.version}${workers}`);
}

function showVerdict() {
  const all = instances.all();
  sayVerdict(verdictOf(all, gateway.status), troublesOf(all) || peace());
}

function sayVerdict({ kind, text, short }, reasons) {
  setText(byId("verdict"), text);
  setData(byId("verdict").parentElement, "kind", kind);
  setIcon(byId("verdict-icon"), kind);
  setText(byId("reasons"), reasons);
  const title = `${SIGNS[kind] ?? "○"} ${short} – Nexus Gateway`;
  if (document.title !== title) document.title = title;
}

// What to say where nobody is in trouble now.
function peace() {
  const { requests: all, failures, failovers } = timelines.totals("");
  const then = remembersAll() ? "in the last 15 minutes" : sinceWhen();
  if (!all) return `No request ${then}.`;
  if (failures) return `${plural(failures, "request")} failed ${then}.`;
  if (failovers) return `No request failed ${then}; where one was in trouble, another instance took over.`;
  return `Nothing failed ${then}.`;
}

// Whether the gateway has been up for as long as the page looks back; one that does not tell has.
const remembersAll = () => !(gateway.at - gateway.since < SPAN_MS);
const sinceWhen = () => (gateway.since ? `since ${moment(gateway.since, gateway.at)}` : "since the start");

function makeTiles() {
  const made = {};
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
    made[name] = { tile, value, more };
  }
  made.sparkline = new Sparkline();
  made.rate.tile.querySelector("dd").append(made.sparkline.node);
  return made;
}

function showTiles() {
  const { requests: all, failures, failovers, tokens } = timelines.totals("");
  const then = remembersAll() ? "in 15 minutes" : sinceWhen();
  const share = (n) => (all ? `${((n / all) * 100).toFixed(1)}% of ${count(all)}` : then);
  const texts = {
    rate: [gateway.requestsPerSecond.toFixed(1), `${count(all)} ${then}`],
    flight: [count(gateway.inFlight), "now"],
    failovers: [count(failovers), then],
    errors: [count(failures), share(failures)],
    tokens: [count(tokens), then],
    cost: cost(),
  };
  for (const [name, [value, more]] of Object.entries(texts)) {
    setText(tiles[name].value, value);
    setText(tiles[name].more, more);
  }
  setData(tiles.errors.tile, "kind", failures ? "bad" : "");
  tiles.sparkline.draw(timelines, "", timelines.most([""]));
}

// What is known of the cost, and of what part of the requests that is.
function cost() {
  const { spentUsd, priced } = gateway;
  if (spentUsd === null) return [NONE, priced === 0 ? "no price known" : "no ledger or prices"];
  const all = (priced ?? 1) === 1; // also where there was no request
  const part = Math.min(99, Math.max(1, Math.round(priced * 100)));
  return [usd(spentUsd), all ? sinceWhen() : `for ${part}% of requests`];
}

async function toggle(name, enabled, button) {
  button.disabled = true;
  try {
    const response = await post("admin", "/v1/providers/toggle", { name, enabled });
    if (response.ok) {
      instances.hear(await response.json());
      show();
      notify("");
    } else if (response.status === 401) notify(""); // who gave no token has left it as it is
    else notify(await problemOf(response));
  } catch {
    notify(`${name} could not be switched: the gateway did not answer.`);
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
    gone: `Gone since ${time(goneSince ?? Date.now())}, trying again`,
    locked: "Locked",
    closed: "Closed",
  };
  setText(byId("link-text"), words[state]);
  if (byId("link").dataset.state === state) return;
  byId("link").dataset.state = state;
  document.body.classList.toggle("stale", state !== "live");
  const shut = { locked: "Enter a token to see this gateway.", closed: text };
  notify(shut[state] ?? "");
  byId("notice-button").hidden = state !== "locked";
  if (state in shut) {
    sayVerdict({ kind: "off", text: `${words[state]}.`, short: words[state] }, "");
    byId("no-requests").hidden = true;
  }
  if (state === "locked") unlock();
  if (state === "gone") {
    const gone = { kind: "bad", text: "The gateway does not answer.", short: "No answer" };
    sayVerdict(gone, gateway ? "Below is how it was before." : "");
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
