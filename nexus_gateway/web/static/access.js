// The tokens and the gateway key: asked for once, when they are needed, and kept in this tab.

const TEXTS = {
  viewer: {
    title: "Viewer or admin token",
    text: "Enter this gateway's VIEWER_TOKEN or ADMIN_TOKEN. If it has no ADMIN_TOKEN, enter one of its GATEWAY_KEYS.",
  },
  admin: {
    title: "Admin token",
    text: "Switching an instance requires this gateway's ADMIN_TOKEN. If it has none, enter one of its GATEWAY_KEYS.",
  },
  caller: {
    title: "Gateway key",
    text: "Sending a request requires one of this gateway's GATEWAY_KEYS.",
  },
};
// A token entered for one purpose may serve another, and is tried before the user is asked again.
// A gateway key may be a viewer's token as well; an admin token is never a gateway key.
const FALLBACKS = { viewer: [], admin: ["viewer"], caller: ["viewer"] };
const INVALID_TOKEN = "A token contains only ASCII letters, digits and punctuation, no spaces.";

const storageKey = (kind) => `nexus-gateway.${kind}`;
const stored = (kind) => sessionStorage.getItem(storageKey(kind));
const store = (kind, token) => sessionStorage.setItem(storageKey(kind), token);
const problems = {}; // by kind: what the dialog shows about the last token

export function headersFor(kind) {
  const token = stored(kind);
  return token ? { Authorization: `Bearer ${token}` } : {};
}

// Forgets a token that the gateway rejected, and keeps the reason for the dialog.
export function reject(kind, reason) {
  problems[kind] = stored(kind) ? `Not accepted. ${reason}` : "";
  sessionStorage.removeItem(storageKey(kind));
}

// Resolves to whether a token was entered.
export function ask(kind) {
  const [dialog, form, field, problem] = ["ask", "ask-form", "token", "ask-problem"].map((id) =>
    document.getElementById(id),
  );
  if (dialog.open) return Promise.resolve(false);
  document.getElementById("ask-title").textContent = TEXTS[kind].title;
  document.getElementById("ask-text").textContent = TEXTS[kind].text;
  const showProblem = (text) => {
    problem.textContent = text;
    field.setAttribute("aria-invalid", String(text !== ""));
  };
  field.value = "";
  showProblem(problems[kind] ?? "");
  problems[kind] = "";
  let valid = false;
  return new Promise((resolve) => {
    form.onsubmit = (event) => {
      event.preventDefault();
      const token = field.value.trim();
      // Nothing else fits into a header, and no key contains anything else.
      valid = /^[!-~]+$/.test(token);
      if (!valid) {
        showProblem(INVALID_TOKEN);
        return;
      }
      store(kind, token);
      dialog.close();
    };
    document.getElementById("ask-cancel").onclick = () => dialog.close();
    dialog.onclose = () => {
      field.value = "";
      resolve(valid);
    };
    dialog.showModal();
  });
}

// Sends JSON, and calls `onSend` before each try. If a token is missing or wrong, it tries the
// fallbacks, then asks for one, and sends the request again.
export async function post(kind, path, body, { headers = {}, signal, onSend = () => {} } = {}) {
  const fallbacks = FALLBACKS[kind].map(stored).filter((token) => token && token !== stored(kind));
  const useFallback = () => {
    if (fallbacks.length) store(kind, fallbacks.shift());
    return Boolean(stored(kind));
  };
  // The viewer's token may be an admin's; a chat request may need no key at all.
  let isFallback = kind === "admin" && !stored(kind) && useFallback();
  for (;;) {
    onSend();
    const response = await fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json", ...headers, ...headersFor(kind) },
      body: JSON.stringify(body),
      signal,
    });
    if (response.status !== 401) return response;
    const reason = await problemOf(response.clone());
    reject(kind, reason);
    if (isFallback) problems[kind] = ""; // it was not entered for this purpose
    isFallback = useFallback();
    if (!isFallback && !(await ask(kind))) return response;
  }
}

export async function problemOf(response) {
  const body = await response.json().catch(() => ({}));
  return body.error?.message ?? `The gateway returned status ${response.status}.`;
}
