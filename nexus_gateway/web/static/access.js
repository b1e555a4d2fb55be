// The tokens and the gateway key: asked for once when they are needed, kept in this tab.

const TEXTS = {
  viewer: {
    title: "Viewer or admin token",
    text: "You need this gateway's VIEWER_TOKEN or ADMIN_TOKEN to see it; where it has no ADMIN_TOKEN, one of its GATEWAY_KEYS will do.",
  },
  admin: {
    title: "Admin token",
    text: "You need this gateway's ADMIN_TOKEN to switch an instance; where it has none, one of its GATEWAY_KEYS.",
  },
  caller: { title: "Gateway key", text: "You need one of this gateway's GATEWAY_KEYS to send a request." },
};
// What was given for one thing may open another, and is tried before anybody is asked again.
// A token is never a gateway key as well; what was typed to look may be one.
const LENDERS = { viewer: [], admin: ["viewer"], caller: ["viewer"] };
const NO_TOKEN = "A token has only plain letters, digits and signs, and no spaces.";

const nameOf = (kind) => `nexus-gateway.${kind}`;
const kept = (kind) => sessionStorage.getItem(nameOf(kind));
const keep = (kind, token) => sessionStorage.setItem(nameOf(kind), token);
const problems = {}; // by kind: what the dialog is to say of the token that was given last

export function headersFor(kind) {
  const token = kept(kind);
  return token ? { Authorization: `Bearer ${token}` } : {};
}

// Forgets a token that the gateway turned away, and keeps for the dialog what it said to that.
export function refused(kind, text) {
  problems[kind] = kept(kind) ? `Not accepted. ${text}` : "";
  sessionStorage.removeItem(nameOf(kind));
}

// Resolves to whether one was given.
export function ask(kind) {
  const [dialog, form, field, problem] = ["ask", "ask-form", "token", "ask-problem"].map((id) =>
    document.getElementById(id),
  );
  if (dialog.open) return Promise.resolve(false);
  document.getElementById("ask-title").textContent = TEXTS[kind].title;
  document.getElementById("ask-text").textContent = TEXTS[kind].text;
  const complain = (text) => {
    problem.textContent = text;
    field.setAttribute("aria-invalid", String(text !== ""));
  };
  field.value = "";
  complain(problems[kind] ?? "");
  problems[kind] = "";
  let given = false;
  return new Promise((resolve) => {
    form.onsubmit = (event) => {
      event.preventDefault();
      const token = field.value.trim();
      // A header holds nothing else, and a key has nothing else.
      given = /^[!-~]+$/.test(token);
      if (!given) {
        complain(NO_TOKEN);
        return;
      }
      keep(kind, token);
      dialog.close();
    };
    document.getElementById("ask-cancel").onclick = () => dialog.close();
    dialog.onclose = () => {
      field.value = "";
      resolve(given);
    };
    dialog.showModal();
  });
}

// Sends JSON, and says so just before, each time; where a token is missing or wrong it looks for
// another, asks for one, and sends it again.
export async function post(kind, path, body, { headers = {}, signal, sending = () => {} } = {}) {
  const lent = LENDERS[kind].map(kept).filter((token) => token && token !== kept(kind));
  const lend = () => {
    if (lent.length) keep(kind, lent.shift());
    return Boolean(kept(kind));
  };
  // Whoever may look may perhaps switch; a request may need no key at all.
  let borrowed = kind === "admin" && !kept(kind) && lend();
  for (;;) {
    sending();
    const response = await fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json", ...headers, ...headersFor(kind) },
      body: JSON.stringify(body),
      signal,
    });
    if (response.status !== 401) return response;
    const text = await problemOf(response.clone());
    refused(kind, text);
    if (borrowed) problems[kind] = ""; // nobody typed it here
    borrowed = lend();
    if (!borrowed && !(await ask(kind))) return response;
  }
}

export async function problemOf(response) {
  const body = await response.json().catch(() => ({}));
  return body.error?.message ?? `The gateway answered ${response.status}.`;
}
