// Makes elements. The only way from data to the page is a text node or an attribute that cannot run: there is no
// innerHTML in this folder, and the page's policy would refuse it.

function make(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") for (const [event, handler] of Object.entries(value)) node.addEventListener(event, handler);
    else if (name === "style") Object.assign(node.style, value);
    else if (name === "vars") for (const [key, entry] of Object.entries(value)) node.style.setProperty(key, entry);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export const h = (tag, attributes, ...children) => make(document.createElement(tag), attributes, children);

export const svg = (tag, attributes, ...children) =>
  make(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

export const empty = (sentence) => h("p", { class: "empty" }, sentence);

export const section = (title, ...children) => h("section", { class: "part" }, h("h3", null, title), ...children);
