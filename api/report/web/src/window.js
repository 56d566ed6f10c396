// A whole window in a dialog: its source, its text, and every unit in it.

import { h } from "./dom.js";
import { count, fixed } from "./format.js";
import { go, link } from "./state.js";
import { label, labelText, plainProse, prose, tinted, visible } from "./text.js";

export function windowDialog(data) {
  const content = h("div", { class: "sheet" });
  const dialog = h("dialog", { class: "window", "aria-label": "Window", on: {
    close: () => go({ unit: null, window: null }),
    click: (event) => event.target === dialog && dialog.close(),
  } }, content);
  let shown = null;
  return {
    element: dialog,
    update({ unit, window }) {
      const wanted = unit !== null ? `unit ${unit}` : window !== null ? `window ${window}` : null;
      if (wanted === shown) return;
      shown = wanted;
      if (wanted === null) return dialog.open && dialog.close();
      content.replaceChildren(...sheet(data, unit !== null ? data.units.window[unit] : window, unit, () => dialog.close()));
      if (!dialog.open) dialog.showModal();
      content.querySelector("pre mark")?.scrollIntoView({ block: "center" });
    },
  };
}

function sheet(data, window, unit, close) {
  const tokens = data.tokens(window);
  const target = unit === null ? null : data.units.target[unit];
  const { name, labels, line, offset } = data.source(window, target ?? 0);
  const others = new Map((data.unitsOfWindow.get(window) ?? []).map((other) => [data.units.target[other], other]));
  const owner = unit === null ? -1 : data.units.quantum[unit];
  const place = [line === null ? null : `line ${count(line)}`, `character ${count(offset)}`, ...labels.slice(0, 8).map((name) => plainProse(name, 60))].filter(Boolean).join(" · ");
  return [
    h("header", null,
      h("div", null, h("h2", null, prose(name)), h("p", { class: "quiet" }, place)),
      h("button", { type: "button", on: { click: close }, autofocus: true }, "Close")),
    unit === null ? null : h("p", { class: "tipline" },
      owner < 0 ? "in no quantum" : h("a", { ...link({ quantum: owner, unit: null, view: "quanta" }), "aria-label": labelText(data, owner) }, label(data, owner)),
      h("span", { class: "quiet" }, `loss ${fixed(data.units.loss[unit])} nats · cosine ${fixed(data.units.cosine[unit])} · unit ${unit}`)),
    h("pre", { class: "text", tabindex: 0 }, text(data, tokens, target, others, unit)),
    others.size > (unit === null ? 0 : 1) ? h("p", { class: "quiet" }, "Underlined tokens are other units; each leads to its own.") : null,
  ].filter(Boolean);
}

function text(data, tokens, target, others, unit) {
  const values = unit === null ? null : data.tints.get(unit);
  const tints = values ? tinted(tokens.slice(0, target), values.subarray(Math.max(0, values.length - target)), { lines: true }) : null;
  return tokens.map((token, i) => {
    const nodes = visible(token, { lines: true });
    if (i === target) return h("mark", { class: "target" }, nodes.length ? nodes : "∅");
    const other = others.get(i);
    if (other !== undefined) return h("a", { class: "unit", title: titleOf(data, other), ...link({ unit: other, window: null }) }, nodes);
    return tints && i < target ? tints[i] : nodes;
  });
}

const titleOf = (data, unit) => (data.units.quantum[unit] < 0 ? "in no quantum" : labelText(data, data.units.quantum[unit]));
