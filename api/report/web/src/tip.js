// The one tooltip: a definition, its caveat and its command for whatever is hovered or focused.

import { h } from "./dom.js";
import { prose } from "./text.js";

const tip = h("div", { class: "tip", role: "tooltip", id: "tip", hidden: true });
let shownFor = null;

export const install = (parent) => {
  parent.append(tip);
  addEventListener("keydown", (event) => event.key === "Escape" && hide());
  addEventListener("scroll", hide, { passive: true });
};

export function hide() {
  shownFor?.removeAttribute("aria-describedby");
  shownFor = null;
  tip.hidden = true;
}

export function show(element, nodes, { left, top, bottom } = element.getBoundingClientRect()) {
  hide();
  shownFor = element;
  element.setAttribute("aria-describedby", "tip");
  tip.replaceChildren(...nodes);
  tip.hidden = false;
  Object.assign(tip.style, { left: 0, top: 0 }); // so that its width is not what was left beside the last place
  const { offsetWidth: width, offsetHeight: height } = tip;
  const page = document.documentElement;
  const below = bottom + 8 + height <= page.clientHeight || top - 8 - height < 0;
  tip.style.left = `${Math.max(8, Math.min(left, page.clientWidth - width - 8))}px`;
  tip.style.top = `${below ? bottom + 8 : top - 8 - height}px`;
}

const explanation = ({ definition, caveat, command }) => [
  h("p", null, prose(definition, 600)),
  caveat ? h("p", { class: "quiet" }, prose(caveat, 600)) : null,
  command ? h("p", null, h("code", null, prose(command, 300))) : null,
].filter(Boolean);

// Gives an element its explanation. An element that cannot be focused by itself becomes so.
export function explain(element, what) {
  if (!element.matches("a, button, input, [tabindex]")) element.tabIndex = 0;
  element.classList.add("explained");
  element.addEventListener("pointerenter", () => show(element, explanation(what)));
  element.addEventListener("focus", () => element.matches(":focus-visible") && show(element, explanation(what)));
  element.addEventListener("click", () => element.tagName !== "BUTTON" && show(element, explanation(what)));
  element.addEventListener("pointerleave", hide);
  element.addEventListener("blur", hide);
  return element;
}
