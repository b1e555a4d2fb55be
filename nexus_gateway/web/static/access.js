// The tokens and the gateway key: asked for once when they are needed, kept in this tab.

const TEXTS = {
  viewer: {
    title: "Viewer or admin token",
    text: "To look takes this gateway's VIEWER_TOKEN or ADMIN_TOKEN; where it has neither, one of its GATEWAY_KEYS.",
  },
  admin: {
    title: "Admin token",
    text: "To switch an instance takes this gateway's ADMIN_TOKEN; where it has none, one of its GATEWAY_KEYS.",
  },
  caller: { title: "Gateway key", text: "Requests need one of this gateway's GATEWAY_KEYS." },
};

const nameOf = (kind) => `nexus-gateway.${kind}`;
const kept = (kind) => sessionStorage.getItem(nameOf(kind));

export function headersFor(kind) {
  // What was given to look with may be the admin's: it is tried before another is asked for.
  const token = kept(kind) ?? (kind === "admin" ? kept("viewer") : null);
  return token ? { Authorization: `Bearer ${token}` } : {};
}

export function forget(kind) {
  sessionStorage.removeItem(nameOf(kind));
}

// Resolves to whether one was given.
export function ask(kind) {
  const dialog = document.getElementById("ask");
  const form = document.getElementById("ask-form");
  const field = document.getElementById("token");
  if (dialog.open) return Promise.resolve(false);
  document.getElementById("ask-title").textContent = TEXTS[kind].title;
  document.getElementById("ask-text").textContent = TEXTS[kind].text;
  field.value = "";
  let given = false;
  return new Promise((resolve) => {
    form.onsubmit = (event) => {
      event.preventDefault();
      const token = field.value.trim();
      // A header holds nothing else, and a key has nothing else.
      given = /^[!-~]+$/.test(token);
      if (given) sessionStorage.setItem(nameOf(kind), token);
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

// Sends JSON; where a token is missing or wrong it asks for one and sends it again.
export async function post(kind, path, body, { headers = {}, signal } = {}) {
  for (;;) {
    const response = await fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json", ...headers, ...headersFor(kind) },
      body: JSON.stringify(body),
      signal,
    });
    if (response.status !== 401) return response;
    forget(kind);
    if (!(await ask(kind))) return response;
  }
}

export async function problemOf(response) {
  const body = await response.json().catch(() => ({}));
  return body.error?.message ?? `The gateway answered ${response.status}.`;
}
