// The list of quanta: one line each, sorted, searched, and folded along the tree.

import { bar, sparkline } from "./charts.js";
import { cutControl } from "./cut.js";
import { defined } from "./definitions.js";
import { empty, h } from "./dom.js";
import { count, fixed, missing, percent, plural } from "./format.js";
import { folded, groupsAt, toggle } from "./groups.js";
import { plain } from "./search.js";
import { go, link, state } from "./state.js";
import { contextLine, label, labelText, plainProse, spoken } from "./text.js";
import { explain } from "./tip.js";

const AT_ONCE = 300;

const COLUMNS = [
  { key: "label", name: "Quantum", order: "up", about: "label" },
  { key: "use", name: "Use", order: "down", about: "use" },
  { key: "size", name: "Units", order: "down", about: "size" },
  { key: "loss", name: "Loss over training", order: "up", about: "loss" },
  { key: "coherence", name: "Coherence", order: "down", about: "coherence" },
  { key: "example", name: "Example", about: "exemplar" },
];

export function list(data, tree, search) {
  const { quanta } = data;
  const largest = (uses) => uses.reduce((most, use) => Math.max(most, use), 1e-9);
  let mostUse = largest(quanta.use);
  const largestLoss = lossScale(data);
  const values = {
    label: (quantum) => spoken(quanta.target[quantum]).toLowerCase(),
    use: (quantum) => quanta.use[quantum],
    size: (quantum) => quanta.size[quantum],
    loss: (quantum) => quanta.mean_loss[quantum],
    coherence: (quantum) => quanta.coherence[quantum],
    emergence: (quantum) => quanta.emergence_step?.[quantum],
  };
  const heads = COLUMNS.map(head);
  const body = h("tbody");
  const said = h("p", { class: "quiet said", role: "status" });
  const more = h("p");
  const box = h("input", { type: "search", placeholder: "Search text, token, label", "aria-label": "Search quanta by text, token or label",
    on: { input: () => go({ search: box.value }) } });
  const cut = tree ? cutControl(tree) : null;
  const element = h("section", { class: "list", "aria-label": "Quanta" },
    h("div", { class: "controls" }, box, cut?.element),
    h("table", { class: "quanta" }, h("thead", null, h("tr", null, heads.map(([cell]) => cell))), body), said, more);
  body.addEventListener("keydown", walk);

  function row(quantum, unit) {
    const example = unit ?? quanta.exemplars[quantum].centre[0] ?? data.members[quantum][0];
    const line = h("tr", { "data-quantum": quantum, on: { click: (event) => !event.target.closest("a, button") && !String(getSelection()) && go({ quantum, unit: null }) } },
      h("td", { class: "c-label" }, h("a", { ...link({ quantum, unit: null }), "aria-label": `${labelText(data, quantum)}` }, label(data, quantum))),
      h("td", { class: "c-use" }, bar(quanta.use[quantum] / mostUse, percent(quanta.use[quantum])), h("span", { "aria-hidden": "true" }, percent(quanta.use[quantum]))),
      h("td", { class: "c-size" }, count(quanta.size[quantum])),
      h("td", { class: "c-loss" }, quanta.loss_curve ? sparkline(data.row(quanta.loss_curve, quantum), largestLoss) : null, h("span", null, fixed(quanta.mean_loss[quantum]))),
      h("td", { class: "c-coherence" }, fixed(quanta.coherence[quantum])),
      h("td", { class: "c-example" }, example === undefined ? h("span", { class: "quiet" }, "no example kept") : contextLine(data, example, { length: 24, found: state.search && plain(state.search) })));
    return line;
  }

  function groupRow(node) {
    const inside = tree.under[node];
    const closed = folded(tree, node, state);
    const most = tree.most(node);
    const press = { click: () => go({ toggled: toggle(state.toggled, node) }) };
    return h("tr", { class: "group" },
      h("td", { class: "c-label" }, h("button", { type: "button", class: "fold", "aria-expanded": String(!closed), on: press }, label(data, most), h("span", { class: "quiet" }, `+${inside.length - 1}`, h("span", { class: "word" }, " more")))),
      h("td", { class: "c-use" }, bar(tree.use[node] / mostUse, percent(tree.use[node])), h("span", { "aria-hidden": "true" }, percent(tree.use[node]))),
      h("td", { class: "c-size" }, count(data.tree.size[node - tree.leaves])),
      h("td", { class: "c-loss" }), h("td", { class: "c-coherence quiet" }, `≥ ${fixed(tree.cosine(node))}`),
      h("td", { class: "c-example quiet" }, inside.filter((quantum) => quantum !== most).slice(0, 6).map((quantum) => [label(data, quantum), "  "])));
  }

  function rows() {
    const found = search(state.search);
    mostUse = largest(tree && state.cut !== null ? groupsAt(tree, state.cut).map((node) => tree.use[node]) : quanta.use);
    const kept = data.byUse.filter((quantum) => !found || found.quanta.has(quantum));
    const value = values[state.sort];
    const sign = state.order === "up" ? 1 : -1;
    const compare = (a, b) => (missing(a) ? 1 : missing(b) ? -1 : a < b ? -sign : a > b ? sign : 0);
    const sorted = kept.sort((a, b) => compare(value(a), value(b)));
    said.textContent = found ? `${plural(kept.length, "quantum", "quanta")} of ${count(data.numQuanta)} match “${plainProse(state.search)}”.` : "";
    if (!tree || state.cut === null) return sorted.map((quantum) => () => row(quantum, found?.quanta.get(quantum)));
    const place = new Map(sorted.map((quantum, i) => [quantum, i]));
    const groups = groupsAt(tree, state.cut)
      .map((node) => ({ node, inside: tree.under[node].filter((quantum) => place.has(quantum)).sort((a, b) => place.get(a) - place.get(b)) }))
      .filter(({ inside }) => inside.length);
    const keyed = groups.map((group) => ({ ...group, key: state.sort === "use" ? tree.use[group.node] : value(group.inside[0]) }));
    return keyed.sort((a, b) => compare(a.key, b.key)).flatMap(({ node, inside }) => {
      const lines = inside.map((quantum) => () => row(quantum, found?.quanta.get(quantum)));
      if (node < tree.leaves) return lines;
      return folded(tree, node, state) ? [() => groupRow(node)] : [() => groupRow(node), ...lines.map((make) => () => indented(make()))];
    });
  }

  function draw() {
    const makers = rows();
    body.replaceChildren(...makers.slice(0, AT_ONCE).map((make) => make()));
    if (!makers.length) body.append(h("tr", null, h("td", { colspan: COLUMNS.length }, empty(data.numQuanta ? "No quantum matches. Search looks in labels, predicted tokens and the 16 tokens before them." : "This run has no quanta."))));
    const rest = makers.slice(AT_ONCE);
    more.replaceChildren(...(rest.length ? [h("button", { type: "button", on: { click: () => { body.append(...rest.map((make) => make())); more.replaceChildren(); mark(); } } }, `Show the other ${count(rest.length)}`)] : []));
    for (const [cell, column] of heads) {
      if (column.order) cell.setAttribute("aria-sort", state.sort !== column.key ? "none" : state.order === "up" ? "ascending" : "descending");
    }
  }

  function mark() {
    for (const line of body.querySelectorAll("[aria-current]")) line.removeAttribute("aria-current");
    body.querySelector(`tr[data-quantum="${state.quantum}"]`)?.setAttribute("aria-current", "true");
  }

  return {
    element,
    update(now, before) {
      const first = !body.childElementCount;
      if (first || ["sort", "order", "search", "cut", "toggled"].some((key) => String(now[key]) !== String(before[key]))) draw();
      if (document.activeElement !== box) box.value = now.search;
      cut?.update();
      mark();
      if (now.quantum !== before.quantum || first) body.querySelector("[aria-current]")?.scrollIntoView({ block: "nearest" });
    },
  };
}

function head(column) {
  const sort = () => go(state.sort === column.key ? { order: state.order === "up" ? "down" : "up" } : { sort: column.key, order: column.order });
  const inside = column.order
    ? h("button", { type: "button", on: { click: sort } }, column.name)
    : h("span", null, column.name);
  return [h("th", { scope: "col", class: `c-${column.key}` }, explain(inside, defined(column.about))), column];
}

const indented = (line) => (line.classList.add("inside"), line);

// Up and down go from line to line.
function walk(event) {
  const step = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
  const next = step && event.target.closest("tr")?.[step]?.querySelector("a, button");
  if (!next) return;
  event.preventDefault();
  next.focus();
}

// The loss that the top of every sparkline stands for: nearly the largest one.
export function lossScale({ quanta }) {
  if (!quanta.loss_curve) return 1;
  const known = Array.from(quanta.loss_curve).filter((loss) => !missing(loss)).sort((a, b) => a - b);
  return known[Math.floor(known.length * 0.99)] || 1;
}
