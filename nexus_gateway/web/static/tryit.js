// The form that sends a prompt through a routing mode and shows the answer.

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
    setOptions(byId("policy"), policies);
    const names = instances.flatMap((i) => [i.model, i.name]);
    setOptions(byId("model"), ["auto", ...new Set(names)]);
  }

  async run() {
    if (this.control) return;
    this.control = new AbortController();
    this.setBusy(true);
    const run = { startedAt: 0, firstMs: null, tokens: 0, instance: "" };
    try {
      await this.stream(run);
    } catch (error) {
      const stopped = this.control.signal.aborted;
      this.showStatus(stopped ? "Stopped." : `Could not reach the gateway: ${error.message}.`);
    }
    this.control = null;
    this.setBusy(false);
  }

  setBusy(busy) {
    const hadFocus = [this.send, this.stop].includes(document.activeElement);
    this.send.disabled = busy;
    this.stop.disabled = !busy;
    if (hadFocus) (busy ? this.stop : this.send).focus();
    if (busy) {
      this.answer.hidden = true;
      this.answer.textContent = "";
      this.showStatus("Waiting for the first token.");
    }
  }

  showStatus(text, kind = "") {
    setText(this.answered, text);
    this.answered.dataset.kind = kind;
  }

  async stream(run) {
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
      // The clock starts when the request is sent, not while a key is being entered.
      onSend: () => (run.startedAt = performance.now()),
    });
    run.instance = response.headers.get("X-Nexus-Provider") ?? "";
    if (!response.ok) {
      this.showStatus(await problemOf(response), "bad");
      return;
    }
    for await (const { data } of eventsOf(response.body)) {
      if (data && data !== "[DONE]" && !this.receive(JSON.parse(data), run)) return;
    }
    const total = duration(performance.now() - run.startedAt);
    const tokens = run.tokens ? `, ${plural(run.tokens, "token")}` : "";
    this.showStatus(`${run.instance} answered: first token after ${duration(run.firstMs)}, total ${total}${tokens}.`, "good");
  }

  // Returns whether the stream continues.
  receive(chunk, run) {
    if (chunk.error) {
      this.showStatus(chunk.error.message, "bad");
      return false;
    }
    const delta = chunk.choices?.[0]?.delta ?? {};
    const text = delta.content ?? delta.reasoning_content ?? delta.reasoning ?? "";
    run.tokens = chunk.usage?.completion_tokens ?? run.tokens;
    if (text) {
      if (run.firstMs === null) {
        run.firstMs = performance.now() - run.startedAt;
        this.showStatus(`${run.instance} is answering; first token after ${duration(run.firstMs)}.`);
        this.answer.hidden = false;
      }
      this.answer.append(text);
      this.answer.scrollTop = this.answer.scrollHeight;
    }
    return true;
  }
}

// Replaces the options if they changed, and keeps the selection.
function setOptions(select, texts) {
  const current = [...select.options].map((option) => option.value);
  if (current.join("\n") === texts.join("\n")) return;
  const selected = select.value;
  select.replaceChildren(...texts.map((text) => element("option", { value: text }, text)));
  if (texts.includes(selected)) select.value = selected;
}
