// Elements. Data becomes text, never markup.

const SVG = "http://www.w3.org/2000/svg";

export function element(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function svgElement(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// Changes a text only if it differs, to avoid needless layout and announcements.
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function setData(node, name, value) {
  if (node.dataset[name] !== value) node.dataset[name] = value;
}

export function icon(kind) {
  const use = svgElement("use", { href: `#${kind}` });
  return svgElement("svg", { class: "icon", "aria-hidden": "true" }, use);
}

export function setIcon(svg, kind) {
  const use = svg.firstChild;
  if (use.getAttribute("href") !== `#${kind}`) use.setAttribute("href", `#${kind}`);
}

const LONG = 12; // characters; a shorter text is not cut
const END = 10;

// A text in one piece or two; the first is cut if there is no room, since similar names differ at
// their ends. The text is split at a separator, so that a screen reader can pause there.
export function splitText(text) {
  const letters = [...text];
  if (letters.length <= LONG) return [element("span", {}, text)];
  const separator = letters.slice(-END).findIndex((letter) => /[\s/:._-]/.test(letter));
  const at = letters.length - (separator < 0 || separator > END - 4 ? 6 : END - separator);
  const pieces = [letters.slice(0, at), letters.slice(at)];
  return pieces.map((piece) => element("span", {}, piece.join("")));
}

// A button that shows the rest of its card; visible on narrow screens, where cards are folded.
export function unfoldButton(name) {
  const button = element("button", { type: "button", class: "unfold", "aria-expanded": "false" });
  const label = button.appendChild(element("span", {}, "More"));
  button.append(element("span", { class: "unseen" }, ` of ${name}`));
  button.addEventListener("click", () => {
    const open = button.closest("li").classList.toggle("unfolded");
    button.setAttribute("aria-expanded", String(open));
    setText(label, open ? "Less" : "More");
  });
  return button;
}
