// Elements. Whatever comes from data becomes text, never markup.

const SVG = "http://www.w3.org/2000/svg";

export function element(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function drawn(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// Changes a text only when it differs, so that nothing is laid out or read aloud for nothing.
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function setData(node, name, value) {
  if (node.dataset[name] !== value) node.dataset[name] = value;
}

export function icon(kind) {
  const use = drawn("use", { href: `#${kind}` });
  return drawn("svg", { class: "icon", "aria-hidden": "true" }, use);
}

export function setIcon(svg, kind) {
  const use = svg.firstChild;
  if (use.getAttribute("href") !== `#${kind}`) use.setAttribute("href", `#${kind}`);
}

const LONG = 12; // letters; what is shorter is not cut
const END = 10;

// A text in one or two pieces. Where it is too long for its place, the first gives way: names
// that begin alike differ at their ends. It is cut where one may pause in reading it aloud.
export function ends(text) {
  const letters = [...text];
  if (letters.length <= LONG) return [element("span", {}, text)];
  const found = letters.slice(-END).findIndex((letter) => /[\s/:._-]/.test(letter));
  const at = letters.length - (found < 0 || found > END - 4 ? 6 : END - found);
  const pieces = [letters.slice(0, at), letters.slice(at)];
  return pieces.map((piece) => element("span", {}, piece.join("")));
}

// A button that shows the rest of its card, for where that is folded.
export function unfolder(name) {
  const button = element("button", { type: "button", class: "unfold", "aria-expanded": "false" });
  const word = button.appendChild(element("span", {}, "More"));
  button.append(element("span", { class: "unseen" }, ` of ${name}`));
  button.addEventListener("click", () => {
    const open = button.closest("li").classList.toggle("unfolded");
    button.setAttribute("aria-expanded", String(open));
    setText(word, open ? "Less" : "More");
  });
  return button;
}
