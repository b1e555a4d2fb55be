// The last requests: which are shown, and when the list is held still.

import { setText } from "./elements.js";
import { plural } from "./format.js";
import { Entry } from "./rows.js";

const KEPT = 200;
const NOTABLE = 100; // kept as well: requests that failed or failed over
const PAGE = 50; // rows on a narrow screen, where the list does not scroll by itself
const REDRAW_MS = 500; // between two redraws; faster changes cannot be read
const NARROW = matchMedia("(max-width: 760px)");

export class Requests {
  constructor(list, { empty, pause, choice }) {
    this.list = list;
    this.scroll = list.parentElement;
    this.more = document.getElementById("more-requests");
    this.empty = empty;
    this.pause = pause;
    this.entries = []; // newest first
    this.waiting = [];
    this.paused = false;
    this.pausedByOpening = false;
    this.hovered = false;
    this.limit = PAGE;
    this.drawnAt = 0;
    list.dataset.show = "all";
    this.watchReader();
    pause.addEventListener("click", () => this.setPaused(!this.paused));
    NARROW.addEventListener("change", () => this.render());
    this.more.addEventListener("click", () => this.showMore());
    for (const button of choice.querySelectorAll("button")) {
      button.addEventListener("click", () => {
        for (const other of choice.querySelectorAll("button")) {
          other.setAttribute("aria-pressed", String(other === button));
        }
        list.dataset.show = button.dataset.show;
        this.limit = PAGE;
        this.render();
      });
    }
  }

  // The list must not move while the pointer or the keyboard focus is in it, or a request is open.
  // A touch leaves no pointer behind.
  watchReader() {
    const { scroll } = this;
    scroll.addEventListener("pointerenter", (event) => {
      this.hovered = event.pointerType === "mouse";
    });
    scroll.addEventListener("pointerleave", () => {
      this.hovered = false;
      this.flush();
    });
    scroll.addEventListener("focusout", () => this.schedule(0));
    // A row's toggle event does not bubble.
    scroll.addEventListener("toggle", ({ target }) => this.onToggle(target.open), true);
  }

  onToggle(open) {
    if (open && !this.paused) {
      this.pausedByOpening = true;
      this.setPaused(true);
    } else if (!open && this.pausedByOpening && !this.list.querySelector(":scope > [open]")) {
      this.setPaused(false);
    }
  }

  setPaused(paused) {
    this.paused = paused;
    this.pausedByOpening &&= paused;
    this.pause.setAttribute("aria-pressed", String(paused));
    this.flush();
  }

  get held() {
    const at = document.activeElement;
    const focused = this.scroll.contains(at) && at.matches(":focus-visible");
    return this.paused || this.hovered || focused;
  }

  // Ignores a request that is already here: after a reconnect another worker sends all it has.
  enqueue(request) {
    const entry = new Entry(request);
    const isSame = ({ key }) => key === entry.key;
    if (!this.entries.some(isSame) && !this.waiting.some(isSame)) this.waiting.push(entry);
  }

  replace(requests) {
    for (const request of requests) this.enqueue(request);
    this.flush();
  }

  add(request) {
    this.enqueue(request);
    if (this.waiting.length > 2 * KEPT) this.waiting = newest(this.waiting).reverse();
    this.schedule(Math.max(0, this.drawnAt + REDRAW_MS - performance.now()));
  }

  schedule(inMs) {
    this.timer ??= setTimeout(() => {
      this.timer = undefined;
      this.flush();
    }, inMs);
  }

  flush() {
    if (!this.held && this.waiting.length) {
      this.entries = newest([...this.waiting.reverse(), ...this.entries]);
      this.waiting = [];
      this.drawnAt = performance.now();
    }
    this.render();
  }

  // The entries that match the filter; All shows the last 200.
  shown() {
    const { show } = this.list.dataset;
    if (show !== "all") return this.entries.filter((entry) => entry[show]);
    return this.entries.filter((entry, index) => index < KEPT || entry.isInUse);
  }

  // Rows that stay are not touched, so that none loses focus.
  render() {
    const shown = this.shown();
    const limit = NARROW.matches ? this.limit : Infinity;
    const rows = shown.filter((entry, index) => index < limit || entry.isInUse).map((e) => e.row);
    const wanted = new Set(rows);
    for (const row of [...this.list.children]) if (!wanted.has(row)) row.remove();
    let at = this.list.firstElementChild;
    for (const row of rows) {
      if (row === at) at = at.nextElementSibling;
      else this.list.insertBefore(row, at);
    }
    this.showCounts(shown.length, shown.length - rows.length);
  }

  showCounts(shown, hidden) {
    const label = this.paused ? "Resume" : "Pause";
    const waiting = Math.min(this.waiting.length, KEPT);
    setText(this.pause, this.held && waiting ? `${label} (${waiting} new)` : label);
    this.more.hidden = !hidden;
    setText(this.more, `Show ${Math.min(hidden, PAGE)} more of ${plural(hidden, "older request")}`);
    this.empty.hidden = shown > 0;
    setText(
      this.empty,
      this.entries.length
        ? "No matching requests."
        : "No requests yet. Send one with Try it, or from any OpenAI or Anthropic client.",
    );
  }

  // Moves the focus to the first row that was added.
  showMore() {
    const shown = this.list.childElementCount;
    this.limit += PAGE;
    this.render();
    this.list.children[shown]?.firstElementChild.focus({ preventScroll: true });
  }
}

// The entries to keep, newest first; of two that ended at the same moment, the later arrival.
function newest(entries) {
  let notable = 0;
  return entries
    .sort((a, b) => b.endedAt - a.endedAt)
    .filter((entry, index) => {
      const isNotable = (entry.failed || entry.moved) && ++notable <= NOTABLE;
      return index < KEPT || isNotable || entry.isInUse;
    });
}
