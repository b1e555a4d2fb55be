// The last requests: which of them are shown, and when the list stands still.

import { setText } from "./elements.js";
import { plural } from "./format.js";
import { Entry } from "./rows.js";

const KEPT = 200;
const TROUBLED = 100; // kept as well: those that failed, or moved to another instance
const AT_ONCE = 50; // rows on a narrow screen, which has no room for a list that scrolls by itself
const REST_MS = 500; // between two drawings; nobody reads faster
const NARROW = matchMedia("(max-width: 760px)");

export class Requests {
  constructor(list, { empty, pause, choice }) {
    this.list = list;
    this.scroll = list.parentElement;
    this.more = document.getElementById("more-requests");
    this.empty = empty;
    this.pause = pause;
    this.entries = []; // the newest first
    this.waiting = [];
    this.paused = false;
    this.byOpening = false;
    this.pointed = false;
    this.most = AT_ONCE;
    this.drawnAt = 0;
    list.dataset.show = "all";
    this.holdStill();
    pause.addEventListener("click", () => this.setPaused(!this.paused));
    NARROW.addEventListener("change", () => this.render());
    this.more.addEventListener("click", () => this.showMore());
    for (const button of choice.querySelectorAll("button")) {
      button.addEventListener("click", () => {
        for (const other of choice.querySelectorAll("button")) {
          other.setAttribute("aria-pressed", String(other === button));
        }
        list.dataset.show = button.dataset.show;
        this.most = AT_ONCE;
        this.render();
      });
    }
  }

  // A list must not move away from under a pointer, from the keyboard's focus, or while a request
  // is read. A finger leaves no pointer behind.
  holdStill() {
    const { scroll } = this;
    scroll.addEventListener("pointerenter", (event) => {
      this.pointed = event.pointerType === "mouse";
    });
    scroll.addEventListener("pointerleave", () => {
      this.pointed = false;
      this.flush();
    });
    scroll.addEventListener("focusout", () => this.plan(0));
    // A row's toggle does not bubble.
    scroll.addEventListener("toggle", ({ target }) => this.opened(target.open), true);
  }

  opened(open) {
    if (open && !this.paused) {
      this.byOpening = true;
      this.setPaused(true);
    } else if (!open && this.byOpening && !this.list.querySelector(":scope > [open]")) {
      this.setPaused(false);
    }
  }

  setPaused(paused) {
    this.paused = paused;
    this.byOpening &&= paused;
    this.pause.setAttribute("aria-pressed", String(paused));
    this.flush();
  }

  get held() {
    const at = document.activeElement;
    const focused = this.scroll.contains(at) && at.matches(":focus-visible");
    return this.paused || this.pointed || focused;
  }

  // What it has already stays, in its place: another worker tells all that it knows.
  take(request) {
    const entry = new Entry(request);
    const isIt = ({ key }) => key === entry.key;
    if (!this.entries.some(isIt) && !this.waiting.some(isIt)) this.waiting.push(entry);
  }

  replace(requests) {
    for (const request of requests) this.take(request);
    this.flush();
  }

  hear(request) {
    this.take(request);
    if (this.waiting.length > 2 * KEPT) this.waiting = last(this.waiting).reverse();
    this.plan(Math.max(0, this.drawnAt + REST_MS - performance.now()));
  }

  plan(inMs) {
    this.planned ??= setTimeout(() => {
      this.planned = undefined;
      this.flush();
    }, inMs);
  }

  flush() {
    if (!this.held && this.waiting.length) {
      this.entries = last([...this.waiting.reverse(), ...this.entries]);
      this.waiting = [];
      this.drawnAt = performance.now();
    }
    this.render();
  }

  // Those that are shown; the older ones only where they are asked for.
  shown() {
    const { show } = this.list.dataset;
    if (show !== "all") return this.entries.filter((entry) => entry[show]);
    return this.entries.filter((entry, place) => place < KEPT || entry.isRead);
  }

  // Rows that stay are not touched, so that none of them loses focus.
  render() {
    const shown = this.shown();
    const most = NARROW.matches ? this.most : Infinity;
    const rows = shown.filter((entry, place) => place < most || entry.isRead).map((e) => e.row);
    const wanted = new Set(rows);
    for (const row of [...this.list.children]) if (!wanted.has(row)) row.remove();
    let at = this.list.firstElementChild;
    for (const row of rows) {
      if (row === at) at = at.nextElementSibling;
      else this.list.insertBefore(row, at);
    }
    this.say(shown.length, shown.length - rows.length);
  }

  say(shown, beyond) {
    const word = this.paused ? "Go on" : "Pause";
    const waiting = Math.min(this.waiting.length, KEPT);
    setText(this.pause, this.held && waiting ? `${word} (${waiting} new)` : word);
    this.more.hidden = !beyond;
    setText(this.more, `Show ${Math.min(beyond, AT_ONCE)} more of ${plural(beyond, "older one")}`);
    this.empty.hidden = shown > 0;
    setText(
      this.empty,
      this.entries.length
        ? "None of the last requests."
        : "None yet. Send one with Try it, or from any OpenAI or Anthropic client.",
    );
  }

  // Goes on from the first of those that were not there.
  showMore() {
    const shown = this.list.childElementCount;
    this.most += AT_ONCE;
    this.render();
    this.list.children[shown]?.firstElementChild.focus({ preventScroll: true });
  }
}

// The last of some, the newest first; of those at the same moment the one heard later.
function last(entries) {
  let troubled = 0;
  return entries
    .sort((a, b) => b.endedAt - a.endedAt)
    .filter((entry, place) => {
      const inTrouble = (entry.failed || entry.moved) && ++troubled <= TROUBLED;
      return place < KEPT || inTrouble || entry.isRead;
    });
}
