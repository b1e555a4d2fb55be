// Reads GET /v1/events, and reconnects when the connection breaks.
//
// Without a token an EventSource does it. It can neither send a token nor read why it was
// rejected: then the same feed is read by fetch, with the token in a header, never in a URL.

import { eventsOf } from "./sse.js";
import { headersFor, problemOf, reject } from "./access.js";

const PATH = "/v1/events";
const NAMES = ["snapshot", "instance", "request", "gateway"];
const SILENCE_MS = 6000; // the gateway sends an event every second
const FIRST_WAIT_MS = 400;
const LONGEST_WAIT_MS = 4000;
const DENIED_WAIT_MS = 10000;

export class Feed {
  // onEvent(name, data) for each event; onState(state, text), where state is opening, live,
  // gone, locked (a token is needed) or closed (no token would be accepted).
  constructor(onEvent, onState) {
    this.onEvent = onEvent;
    this.onState = onState;
    this.lastId = "";
    this.waitMs = FIRST_WAIT_MS;
    this.lastEventAt = 0;
    this.disconnect = () => {};
    setInterval(() => this.checkSilence(), 1000);
  }

  open() {
    this.disconnect();
    clearTimeout(this.timer);
    this.lastEventAt = 0;
    if ("Authorization" in headersFor("viewer")) this.openFetch();
    else this.openEventSource();
  }

  openEventSource() {
    const source = new EventSource(PATH);
    this.disconnect = () => source.close();
    for (const name of NAMES) {
      source.addEventListener(name, (event) => this.receive(name, event.data, event.lastEventId));
    }
    source.onerror = () => {
      const rejected = source.readyState === EventSource.CLOSED;
      source.close();
      if (rejected) this.openFetch();
      else this.reconnect();
    };
  }

  async openFetch() {
    const control = new AbortController();
    this.disconnect = () => control.abort();
    const resume = this.lastId ? { "Last-Event-ID": this.lastId } : {};
    const headers = { Accept: "text/event-stream", ...headersFor("viewer"), ...resume };
    try {
      const response = await fetch(PATH, { headers, cache: "no-store", signal: control.signal });
      if (!response.ok) {
        await this.onRejected(response);
        return;
      }
      for await (const { event, data, id } of eventsOf(response.body)) {
        if (id) this.lastId = id;
        if (NAMES.includes(event)) this.receive(event, data, this.lastId);
      }
    } catch (error) {
      if (control.signal.aborted) return;
    }
    this.reconnect();
  }

  async onRejected(response) {
    const reason = await problemOf(response);
    if (response.status === 401) {
      reject("viewer", reason);
      this.onState("locked", reason);
    } else if (response.status === 403) {
      this.onState("closed", reason);
      this.timer = setTimeout(() => this.open(), DENIED_WAIT_MS);
    } else {
      this.reconnect();
    }
  }

  receive(name, data, id) {
    this.lastId = id || this.lastId;
    this.lastEventAt = Date.now();
    this.waitMs = FIRST_WAIT_MS;
    this.onState("live", "");
    this.onEvent(name, JSON.parse(data));
  }

  reconnect() {
    this.disconnect();
    this.lastEventAt = 0;
    this.onState("gone", "");
    this.timer = setTimeout(() => this.open(), this.waitMs);
    this.waitMs = Math.min(this.waitMs * 2, LONGEST_WAIT_MS);
  }

  checkSilence() {
    if (this.lastEventAt && Date.now() - this.lastEventAt > SILENCE_MS) this.reconnect();
  }
}
