// The box that sends a prompt through a routing mode and shows who answers.

import { post, problemOf } from "./access.js";
import { element, setText } from "./elements.js";
import { duration, plural } from "./format.js";
import { eventsOf } from "./sse.js";

const PATH = "/v1/chat/completions";
const byId = (id) => document.getElementById(id);

export class TryIt {
  constructor() {
    this.form = byId("try");
    this.answer = byId("answer");
    this.answered = byId("answered");
    this.send = byId("send");
    this.stop = byId("stop");
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.run();
    });
    this.stop.addEventListener("click", () => this.control?.abort());
    byId("prompt").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.form.requestSubmit();
    });
  }

  offer(policies, instances) {
    choose(byId("policy"), policies);
    const names = instances.flatMap((i) => [i.model, i.name]);
    choose(byId("model"), ["auto", ...new Set(names)]);
  }

  async run() {
    if (this.control) return;
    this.control = new AbortController();
    this.busy(true);
    const took = { began: 0, first: null, tokens: 0, by: "" };
    try {
      await this.stream(took);
    } catch (error) {
      const stopped = this.control.signal.aborted;
      this.say(stopped ? "Stopped." : `The gateway could not be reached: ${error.message}.`);
    }
    this.control = null;
    this.busy(false);
  }

  busy(busy) {
    const hadFocus = [this.send, this.stop].includes(document.activeElement);
    this.send.disabled = busy;
    this.stop.disabled = !busy;
    if (hadFocus) (busy ? this.stop : this.send).focus();
    if (busy) {
      this.answer.hidden = true;
      this.answer.textContent = "";
      this.say("Sent; waiting for the first word.");
    }
  }

  say(text, kind = "") {
    setText(this.answered, text);
    this.answered.dataset.kind = kind;
  }

  async stream(took) {
    const body = {
      model: byId("model").value,
      messages: [{ role: "user", content: byId("prompt").value }],
      stream: true,
      stream_options: { include_usage: true },
    };
    const headers = { "X-Routing-Mode": byId("policy").value };
    const response = await post("caller", PATH, body, {
      headers,
      signal: this.control.signal,
      // The clock starts when it goes out, not while somebody looks for a key.
      sending: () => (took.began = performance.now()),
    });
    took.by = response.headers.get("X-Nexus-Provider") ?? "";
    if (!response.ok) {
      this.say(await problemOf(response), "bad");
      return;
    }
    for await (const { data } of eventsOf(response.body)) {
      if (data && data !== "[DONE]" && !this.take(JSON.parse(data), took)) return;
    }
    const all = duration(performance.now() - took.began);
    const tokens = took.tokens ? `, ${plural(took.tokens, "token")}` : "";
    this.say(`${took.by} answered: first word after ${duration(took.first)}, all in ${all}${tokens}.`, "good");
  }

  // Returns whether the stream goes on.
  take(chunk, took) {
    if (chunk.error) {
      this.say(chunk.error.message, "bad");
      return false;
    }
    const delta = chunk.choices?.[0]?.delta ?? {};
    const text = delta.content ?? delta.reasoning_content ?? delta.reasoning ?? "";
    took.tokens = chunk.usage?.completion_tokens ?? took.tokens;
    if (text) {
      if (took.first === null) {
        took.first = performance.now() - took.began;
        this.say(`${took.by} is answering; first word after ${duration(took.first)}.`);
        this.answer.hidden = false;
      }
      this.answer.append(text);
      this.answer.scrollTop = this.answer.scrollHeight;
    }
    return true;
  }
}

// Offers texts without touching what is chosen, and nothing at all where nothing changed.
function choose(select, texts) {
  const known = [...select.options].map((option) => option.value);
  if (known.join("\n") === texts.join("\n")) return;
  const chosen = select.value;
  select.replaceChildren(...texts.map((text) => element("option", { value: text }, text)));
  if (texts.includes(chosen)) select.value = chosen;
}
