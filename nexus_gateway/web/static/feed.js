// Listens to GET /v1/events, and goes on listening.
//
// An EventSource does where no token is needed. It cannot send one, nor tell why it was turned
// away: then the same feed is read by fetch, with the token in a header and never in an address.

import { eventsOf } from "./sse.js";
import { headersFor, problemOf, refused } from "./access.js";

const PATH = "/v1/events";
const NAMES = ["snapshot", "instance", "request", "gateway"];
const SILENCE_MS = 6000; // it speaks every second
const FIRST_WAIT_MS = 400;
const LONGEST_WAIT_MS = 4000;
const CLOSED_WAIT_MS = 10000;

export class Feed {
  // hear(name, data) for each event; say(state, text) where state is
  // opening, live, gone, locked (a token is needed) or closed (none would do).
  constructor(hear, say) {
    this.hear = hear;
    this.say = say;
    this.lastId = "";
    this.waitMs = FIRST_WAIT_MS;
    this.heardAt = 0;
    this.leave = () => {};
    setInterval(() => this.watch(), 1000);
  }

  open() {
    this.leave();
    clearTimeout(this.timer);
    this.heardAt = 0;
    if ("Authorization" in headersFor("viewer")) this.read();
    else this.listen();
  }

  listen() {
    const source = new EventSource(PATH);
    this.leave = () => source.close();
    for (const name of NAMES) {
      source.addEventListener(name, (event) => this.take(name, event.data, event.lastEventId));
    }
    source.onerror = () => {
      const turnedAway = source.readyState === EventSource.CLOSED;
      source.close();
      if (turnedAway) this.read();
      else this.again();
    };
  }

  async read() {
    const control = new AbortController();
    this.leave = () => control.abort();
    const resume = this.lastId ? { "Last-Event-ID": this.lastId } : {};
    const headers = { Accept: "text/event-stream", ...headersFor("viewer"), ...resume };
    try {
      const response = await fetch(PATH, { headers, cache: "no-store", signal: control.signal });
      if (!response.ok) {
        await this.turnedAway(response);
        return;
      }
      for await (const { event, data, id } of eventsOf(response.body)) {
        if (id) this.lastId = id;
        if (NAMES.includes(event)) this.take(event, data, this.lastId);
      }
    } catch (error) {
      if (control.signal.aborted) return;
    }
    this.again();
  }

  async turnedAway(response) {
    const text = await problemOf(response);
    if (response.status === 401) {
      refused("viewer", text);
      this.say("locked", text);
    } else if (response.status === 403) {
      this.say("closed", text);
      this.timer = setTimeout(() => this.open(), CLOSED_WAIT_MS);
    } else {
      this.again();
    }
  }

  take(name, data, id) {
    this.lastId = id || this.lastId;
    this.heardAt = Date.now();
    this.waitMs = FIRST_WAIT_MS;
    this.say("live", "");
    this.hear(name, JSON.parse(data));
  }

  again() {
    this.leave();
    this.heardAt = 0;
    this.say("gone", "");
    this.timer = setTimeout(() => this.open(), this.waitMs);
    this.waitMs = Math.min(this.waitMs * 2, LONGEST_WAIT_MS);
  }

  watch() {
    if (this.heardAt && Date.now() - this.heardAt > SILENCE_MS) this.again();
  }
}
