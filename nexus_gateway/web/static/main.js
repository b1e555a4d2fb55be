// The Control Center: hears the feed, and shows it.

import { ask, post, problemOf } from "./access.js";
import { element, setData, setIcon, setText } from "./elements.js";
import { Feed } from "./feed.js";
import { NONE, count, plural, time, usd } from "./format.js";
import { Instances, reasonOf, serves, stateOf } from "./instances.js";
import { Requests } from "./requests.js";
import { Sparkline, Timelines } from "./timeline.js";
import { TryIt } from "./tryit.js";

const byId = (id) => document.getElementById(id);
const NAMED = 2; // in the sentence at the top

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
  if (goneSince) return;
  instances.tick(timelines);
  showVerdict();
  showTiles();
  tryIt.offer(gateway.policies, [...instances.known.values()]);
  const workers = gateway.workers > 1 ? ` · ${plural(gateway.workers, "worker")}` : "";
  setText(byId("about"), `${gateway.version}${workers}`);
}

function showVerdict() {
  const all = [...instances.known.values()].map((i) => ({ ...i, state: stateOf(i) }));
  const wanted = all.filter((i) => i.enabled);
  const able = wanted.filter((i) => serves(i.state));
  const troubled = wanted.filter((i) => i.state.kind !== "good");
  const off = all.length - wanted.length;
  let kind = "good";
  let text = `All ${plural(wanted.length, "instance")} serve.`;
  if (wanted.length === 1) text = "The one instance serves.";
  if (gateway.status === "draining") [kind, text] = ["wait", "The gateway is shutting down."];
  else if (!all.length) [kind, text] = ["off", "There is no instance: set a provider's key."];
  else if (!wanted.length) [kind, text] = ["bad", "Every instance is switched off."];
  else if (!able.length) [kind, text] = ["bad", "Nobody serves."];
  else if (able.length < wanted.length) {
    [kind, text] = ["weak", `${able.length} of ${wanted.length} instances serve.`];
  } else if (troubled.length) {
    const few = troubled.length === 1 ? "one struggles" : `${troubled.length} struggle`;
    [kind, text] = ["weak", `All serve, ${few}.`];
  }
  if (off && wanted.length) text += ` ${off} ${off === 1 ? "is" : "are"} off.`;
  sayVerdict(kind, text);
  setText(byId("reasons"), troubled.length ? reasons(troubled) : peace());
}

function sayVerdict(kind, text) {
  setText(byId("verdict"), text);
  setData(byId("verdict").parentElement, "kind", kind);
  setIcon(byId("verdict-icon"), kind);
}

function reasons(troubled) {
  const named = troubled.slice(0, NAMED).map(sentence).join("  ·  ");
  const more = troubled.length > NAMED ? `  ·  and ${troubled.length - NAMED} more` : "";
  return named + more;
}

// What to say where nobody is in trouble now.
function peace() {
  const { requests: all, failures, failovers } = timelines.totals("");
  if (!all) return "No request in the last 15 minutes.";
  if (failures) return `${plural(failures, "request")} failed in the last 15 minutes.`;
  if (failovers) return "No request failed in the last 15 minutes; where one was in trouble, another instance took over.";
  return "Nothing failed in the last 15 minutes.";
}

function sentence(instance) {
  const { name, state } = instance;
  const word = state.word[0].toLowerCase() + state.word.slice(1);
  const reason = reasonOf(instance, state);
  return `${name}: ${word}${reason ? `, ${reason}` : ""}`;
}

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
  const share = (n) => (all ? `${((n / all) * 100).toFixed(1)}% of ${count(all)}` : "in 15 minutes");
  const texts = {
    rate: [gateway.requestsPerSecond.toFixed(1), `${count(all)} in 15 minutes`],
    flight: [count(gateway.inFlight), "now"],
    failovers: [count(failovers), "in 15 minutes"],
    errors: [count(failures), share(failures)],
    tokens: [count(tokens), "in 15 minutes"],
    cost: [usd(gateway.spentUsd), gateway.spentUsd === null ? "no ledger" : "known, since the start"],
  };
  for (const [name, [value, more]] of Object.entries(texts)) {
    setText(tiles[name].value, value);
    setText(tiles[name].more, more);
  }
  setData(tiles.errors.tile, "kind", failures ? "bad" : "");
  tiles.sparkline.draw(timelines, "", timelines.most([""]));
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
  const locked = "Who wants to see how the gateway does needs its viewer token or its admin token.";
  notify(state === "locked" ? locked : state === "closed" ? text : "");
  byId("notice-button").hidden = state !== "locked";
  if (state === "locked") unlock();
  if (state === "gone") {
    sayVerdict("bad", "The gateway does not answer.");
    setText(byId("reasons"), gateway ? "Below is how it was before." : "");
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
