// The settings that point a client at this gateway, from the same table as `nexus-gateway setup`.

import { element, setText } from "./elements.js";

const byId = (id) => document.getElementById(id);
const KEY = "your-gateway-key";

export class Connect {
  constructor() {
    byId("connect").addEventListener("toggle", () => this.load(), { once: true });
    byId("client").addEventListener("change", () => this.show());
  }

  async load() {
    try {
      this.clients = await (await fetch("/static/clients.json")).json();
    } catch {
      return setText(byId("settings"), "The gateway did not respond: reload the page.");
    }
    const options = this.clients.map(({ id, title }) => element("option", { value: id }, title));
    byId("client").replaceChildren(...options);
    this.show();
  }

  show() {
    const { parts } = this.clients.find(({ id }) => id === byId("client").value);
    byId("settings").replaceChildren(...parts.flatMap(partOf));
  }
}

function partOf({ text, file, note }) {
  const filled = text.replaceAll("{{url}}", location.origin).replaceAll("{{key}}", KEY);
  const code = element("pre", { tabindex: "0", "aria-label": file ?? "Settings" }, filled);
  const copy = element("button", { type: "button", class: "button" }, "Copy");
  copy.addEventListener("click", () => copied(copy, code));
  return [element("p", { class: "small" }, file ?? note ?? ""), code, copy];
}

// Without TLS only this machine's own pages may use the clipboard: then the text is selected.
async function copied(button, code) {
  try {
    await navigator.clipboard.writeText(code.textContent);
    setText(button, "Copied");
  } catch {
    getSelection().selectAllChildren(code);
    setText(button, "Selected");
  }
}
