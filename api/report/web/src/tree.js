// The tree above the quanta as an icicle: a merge's box begins where its own merge with others happened and ends at
// the cosine that joined its parts. Boxes fold.

import { ofRank } from "./colours.js";
import { ticks } from "./charts.js";
import { cutControl } from "./cut.js";
import { empty, h, svg } from "./dom.js";
import { fixed, missing, plural } from "./format.js";
import { folded, toggle } from "./groups.js";
import { go, link, state } from "./state.js";
import { label, labelText } from "./text.js";

const LINE = 24;

export function treeView(data, tree) {
  const cut = cutControl(tree);
  const frame = h("div", { class: "icicle" });
  const element = h("section", { class: "page" }, h("h2", null, "Tree"),
    h("p", { class: "lead" }, "How the quanta are nested: boxes further right were joined at a higher mean cosine. A press on a box folds or unfolds it."),
    data.tree.persistence ? h("p", { class: "treekey quiet" }, h("span", { class: "swatch back" }), "comes back in 16 or more of 20 halves of the documents", h("span", { class: "swatch lost" }), "does not, or holds one unit") : null,
    h("div", { class: "controls" }, cut.element), tree.leaves ? frame : empty("This run has no quanta, so there is no tree."));
  let width = 0;
  const draw = () => width && tree.leaves && frame.replaceChildren(...icicle(data, tree, width));
  new ResizeObserver(([entry]) => {
    if (Math.abs(entry.contentRect.width - width) < 1) return;
    width = entry.contentRect.width;
    draw();
  }).observe(frame);
  return {
    element,
    update(now, before) {
      cut.update();
      if (now.cut !== before.cut || String(now.toggled) !== String(before.toggled)) draw();
    },
  };
}

function icicle(data, tree, width) {
  const names = Math.max(130, Math.min(420, width * 0.4));
  const [low, high] = tree.range;
  const x = (cosine) => ((Math.max(low, Math.min(high, cosine)) - low) / (high - low || 1)) * (width - names - 40);
  const rows = [];
  const boxes = [];
  const visit = (node, from) => {
    const first = rows.length;
    const closed = folded(tree, node, state);
    if (node < tree.leaves || closed) rows.push({ node, top: first });
    else tree.sides(node).forEach((side) => visit(side, Math.max(from, tree.cosine(node))));
    const until = node < tree.leaves || closed ? width - names : x(Math.max(from, tree.cosine(node)));
    boxes.push({ node, closed, x: x(from), width: Math.max(1, until - x(from)), y: first, rows: rows.length - first });
  };
  tree.roots.forEach((node) => visit(node, low));
  const height = rows.length * LINE;
  const axis = svg("svg", { class: "chart axis", width: width - names, height: 26, "aria-hidden": "true" },
    ticks(low, high, 5).map((cosine) => svg("text", { x: Math.min(x(cosine) + 2, width - names - 30), y: 18 }, fixed(cosine, 1))));
  return [axis, h("div", { class: "rows", style: { height: `${height}px` } },
    svg("svg", { class: "chart boxes", width: width - names, height, role: "group", "aria-label": "Tree of quanta" }, boxes.map((box) => shape(data, tree, box))),
    h("ul", { style: { left: `${width - names}px`, width: `${names}px` } }, rows.map(({ node }) => h("li", null, name(data, tree, node)))))];
}

function shape(data, tree, { node, closed, x, width, y, rows }) {
  const leaf = node < tree.leaves;
  const back = tree.persistence(node);
  const lost = back !== undefined && !(back >= 0.8);
  const box = svg("rect", { class: `${leaf ? "leaf" : closed ? "closed" : "merge"}${lost ? " lost" : ""}`, x: x + 0.5, y: y * LINE + (leaf ? 9 : 1), width: Math.max(1, width - 1), height: leaf ? 6 : rows * LINE - 2, rx: 2 });
  const rank = data.rankOf[leaf ? node : tree.most(node)];
  if (leaf && rank < 10) box.style.fill = ofRank(rank);
  if (leaf) return svg("a", { ...link({ view: "quanta", quantum: node }), tabindex: -1, "aria-hidden": "true" }, box);
  const flip = () => go({ toggled: toggle(state.toggled, node) });
  const words = `${plural(tree.under[node].length, "quantum", "quanta")} joined at cosine ${fixed(tree.cosine(node))}${missing(back) ? "" : `, comes back in ${Math.round(back * 20)} of 20 halves`}; most used: ${labelText(data, tree.most(node))}`;
  return svg("g", { role: "button", tabindex: 0, "aria-expanded": String(!closed), "aria-label": words, on: { click: flip, keydown: (event) => (event.key === "Enter" || event.key === " ") && (event.preventDefault(), flip()) } }, svg("title", null, words), box);
}

function name(data, tree, node) {
  if (node < tree.leaves) return h("a", { ...link({ view: "quanta", quantum: node }), "aria-label": labelText(data, node) }, label(data, node));
  return h("button", { type: "button", class: "fold", "aria-expanded": "false", on: { click: () => go({ toggled: toggle(state.toggled, node) }) } },
    label(data, tree.most(node)), h("span", { class: "quiet" }, `+${tree.under[node].length - 1}`, h("span", { class: "word" }, " more")));
}
