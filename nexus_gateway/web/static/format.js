// Formats numbers and times for people; a dash stands for an unknown value.

export const NONE = "–";
const grouped = new Intl.NumberFormat("en-US");
const compact = new Intl.NumberFormat("en-US", { notation: "compact", maximumFractionDigits: 1 });
const clock = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium" });
const minute = new Intl.DateTimeFormat("en-GB", { timeStyle: "short" });
const day = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });
const DAY_MS = 24 * 60 * 60 * 1000;

export const count = (n) => (n < 100000 ? grouped.format(n) : compact.format(n));
export const time = (ms) => clock.format(new Date(ms));
// The time of day within the last 24 hours, the date of anything older.
export const moment = (ms, nowMs) => (nowMs - ms < DAY_MS ? minute : day).format(new Date(ms));
export const usd = (n) => (n === null || n === undefined ? NONE : `$${n.toFixed(n && n < 10 ? 4 : 2)}`);
export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;

export function duration(ms) {
  if (ms === null || ms === undefined) return NONE;
  if (ms < 999.5) return `${Math.round(ms)} ms`;
  return ms < 99950 ? `${(ms / 1000).toFixed(ms < 9995 ? 2 : 1)} s` : countdown(ms);
}

export function countdown(ms) {
  const seconds = Math.max(0, Math.ceil(ms / 1000));
  if (seconds < 100) return `${seconds} s`;
  return seconds < 6000 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}
