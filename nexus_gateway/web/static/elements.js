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
