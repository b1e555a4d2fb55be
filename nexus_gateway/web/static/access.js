// The admin token and the gateway key: asked for once when they are needed, kept in this tab.

const TEXTS = {
  admin: {
    title: "Admin token",
    text: "This gateway wants its ADMIN_TOKEN for this; where it has none, one of its GATEWAY_KEYS.",
  },
  caller: { title: "Gateway key", text: "Requests need one of this gateway's GATEWAY_KEYS." },
};

const nameOf = (kind) => `nexus-gateway.${kind}`;

export function headersFor(kind) {
  const token = sessionStorage.getItem(nameOf(kind));
  return token ? { Authorization: `Bearer ${token}` } : {};
}

export function forget(kind) {
  sessionStorage.removeItem(nameOf(kind));
}

// Resolves to whether there is one now.
export function ask(kind) {
  const dialog = document.getElementById("ask");
  const form = document.getElementById("ask-form");
  const field = document.getElementById("token");
  if (dialog.open) return Promise.resolve(false);
  document.getElementById("ask-title").textContent = TEXTS[kind].title;
  document.getElementById("ask-text").textContent = TEXTS[kind].text;
  field.value = "";
  return new Promise((resolve) => {
    form.onsubmit = (event) => {
      event.preventDefault();
      const token = field.value.trim();
      // A header holds nothing else, and a key has nothing else.
      if (/^[!-~]+$/.test(token)) sessionStorage.setItem(nameOf(kind), token);
      dialog.close();
    };
    document.getElementById("ask-cancel").onclick = () => dialog.close();
    dialog.onclose = () => {
      field.value = "";
      resolve("Authorization" in headersFor(kind));
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
