// One quantum: what it predicts, after what, where in the network, since when, and what it is close to.

import { bar, heatMap, lossCurve } from "./charts.js";
import { defined } from "./definitions.js";
import { empty, h, section } from "./dom.js";
import { count, fixed, missing, percent, plural } from "./format.js";
import { lossScale } from "./list.js";
import { link } from "./state.js";
import { contextLine, cutToken, label, labelText, prose, visible } from "./text.js";
import { explain } from "./tip.js";

const AT_ONCE = 200;

export function quantumPage(data, mapElement) {
  const largestLoss = lossScale(data);
  const element = h("article", { class: "quantum", tabindex: -1 });
  let shown = null;
  return {
    element,
    update({ quantum }) {
      if (quantum === shown) return;
      shown = quantum;
      element.replaceChildren(...page(data, quantum, largestLoss, mapElement));
    },
  };
}

function page(data, quantum, largestLoss, mapElement) {
  const { quanta } = data;
  const rank = data.rankOf[quantum];
  const step = (by) => data.byUse[rank + by];
  const to = (other, name, text) => (other === undefined ? h("span", { class: "button off", "aria-hidden": "true" }, text) : h("a", { class: "button", "aria-label": name, ...link({ quantum: other, unit: null }) }, text));
  return [
    h("header", null,
      h("div", { class: "steps" },
        h("a", { class: "button", ...link({ quantum: null, unit: null }) }, "All quanta"),
        h("span", { class: "quiet" }, `${count(rank + 1)} of ${count(data.numQuanta)} by use · quantum ${quantum}`),
        to(step(-1), "The next more used quantum", "↑"), to(step(1), "The next less used quantum", "↓")),
      h("h2", null, label(data, quantum)),
      quanta.phrase[quantum] ? h("p", { class: "phrase" }, prose(quanta.phrase[quantum], 300)) : null,
      quanta.name?.[quantum] ? h("p", { class: "given quiet" }, explain(h("span", { tabindex: 0 }, "named by a language model: ", h("q", null, prose(quanta.name[quantum], 80))), defined("named"))) : null,
      figures(data, quantum)),
    h("div", { class: "columns" },
      h("div", { class: "exemplars" }, exemplars(data, quantum)),
      h("aside", null, mapElement, sidebar(data, quantum, largestLoss))),
  ];
}

function figures({ quanta }, quantum) {
  const optional = (column, name, key, show, beside = null) => (column && !missing(column[quantum]) ? [name, show(column[quantum]), key, beside] : null);
  const whole = (value) => (Number.isFinite(value) ? fixed(value, value < 10 ? 1 : 0) : "∞");
  const range = quanta.dimension_low && !missing(quanta.dimension_low[quantum]) ? `${whole(quanta.dimension_low[quantum])} to ${whole(quanta.dimension_high[quantum])}` : null;
  const times = (value) => `${Math.round(value * 20)} of 20`;
  const short = (value) => Number(value.toPrecision(2));
  const besides = (column, show) => (column && !missing(column[quantum]) ? `null ${show(column[quantum])}` : null);
  const usual = quanta.influence_low && !missing(quanta.influence_low[quantum]) ? `null ${short(quanta.influence_low[quantum])} to ${short(quanta.influence_high[quantum])}` : null;
  const entries = [
    ["use", percent(quanta.use[quantum]), "use"],
    ["units", count(quanta.size[quantum]), "size"],
    ["documents", count(quanta.num_documents[quantum]), "documents"],
    ["mean loss", fixed(quanta.mean_loss[quantum], 3), "meanLoss"],
    ["coherence", fixed(quanta.coherence[quantum]), "coherence"],
    optional(quanta.persistence, "comes back", "persistence", times, besides(quanta.persistence_null, times)),
    optional(quanta.effective_dimension, "dimension", "dimension", whole, [range, missing(quanta.dimension_null) ? null : `null ${whole(quanta.dimension_null)}`].filter(Boolean).join(", ")),
    optional(quanta.memorised, "memorised", "memorised", fixed, besides(quanta.memorised_null, fixed)),
    optional(quanta.self_influence, "self-influence", "influence", (value) => `× ${short(value)}`, usual),
    optional(quanta.monogenic, "monogenic", "monogenic", fixed, besides(quanta.monogenic_null, fixed)),
    optional(quanta.emergence_step, "emerged at step", "emergence", count),
  ];
  return h("ul", { class: "facts" }, entries.filter(Boolean).map(([name, value, key, beside]) =>
    h("li", null, explain(h("span", { class: "fact", tabindex: 0 }, h("strong", null, value), h("span", { class: "quiet" }, name), beside ? h("small", { class: "beside" }, beside) : null), defined(key)))));
}

function exemplars(data, quantum) {
  const { centre, edge, counter } = data.quanta.exemplars[quantum];
  const kept = new Set([...centre, ...edge]);
  const rest = data.members[quantum].filter((unit) => !kept.has(unit));
  return [
    section("Near the centre", centre.length ? lines(data, centre) : empty("No example was kept for this quantum.")),
    edge.length ? section("At the edge", lines(data, edge)) : null,
    section("Counter-examples", h("p", { class: "quiet" }, "The nearest units that belong elsewhere, and where."),
      counter.length ? lines(data, counter, { elsewhere: true }) : empty("None were kept: no unit of another quantum is near.")),
    rest.length ? all(data, rest) : null,
  ];
}

function all(data, units) {
  const place = h("div");
  const button = h("button", { type: "button", on: { click: () => { place.replaceChildren(lines(data, units.slice(0, AT_ONCE))); button.remove(); } } },
    units.length > AT_ONCE ? `Show ${AT_ONCE} of the other ${count(units.length)} units` : `Show the other ${plural(units.length, "unit")}`);
  return section("The rest", button, place);
}

export const lines = (data, units, { elsewhere = false, scores = null } = {}) =>
  h("ul", { class: "lines" }, units.map((unit, i) => line(data, unit, elsewhere, scores?.[i])));

function line(data, unit, elsewhere, score) {
  const { name, line: number } = data.source(data.units.window[unit], data.units.target[unit]);
  const owner = data.units.quantum[unit];
  return h("li", null,
    h("a", { class: "open", ...link({ unit }) }, contextLine(data, unit)),
    h("span", { class: "where quiet" },
      score === undefined ? null : h("span", { class: "score" }, fixed(score, 3)),
      h("span", { class: "source" }, prose(name), number === null ? null : `:${number}`),
      h("span", null, `loss ${fixed(data.units.loss[unit])}`),
      data.units.also && data.units.also[unit] >= 0 && !elsewhere ? h("a", { class: "owner", ...link({ quantum: data.units.also[unit], unit: null }) }, h("span", null, "also uses"), label(data, data.units.also[unit])) : null,
      elsewhere && (owner < 0 ? h("span", null, "in no quantum") : h("a", { class: "owner", ...link({ quantum: owner, unit: null }) }, h("span", null, "belongs to"), label(data, owner)))));
}

const pairs = (data, entries, beside, nothing) => (entries.length
  ? h("ul", { class: "near wide" }, entries.map((entry) => h("li", null, h("a", { ...link({ quantum: entry.quantum, unit: null }), "aria-label": labelText(data, entry.quantum) }, label(data, entry.quantum)), beside(entry))))
  : empty(nothing));

function sidebar(data, quantum, largestLoss) {
  const { quanta, checkpoint_steps: steps } = data;
  const top = quanta.top_documents[quantum] ?? [];
  const near = Array.from(data.row(quanta.nearest, quantum)).map((other, i) => [other, data.row(quanta.nearest_cosine, quantum)[i]]).filter(([other]) => other >= 0);
  const marks = quanta.distinguishing[quantum];
  const titled = (key, title, ...children) => h("section", { class: "part" }, h("h3", null, explain(h("span", null, title), defined(key))), children);
  return [
    marks.length ? section("Set apart by", h("p", { class: "tokens" }, marks.map((token) => [h("code", { class: "piece" }, visible(cutToken(token))), " "]))) : null,
    quanta.address ? titled("address", "Where in the network (% of the gradient)", heatMap(quanta.address, data.row(quanta.address.share, quantum))) : null,
    quanta.loss_curve && steps ? titled("loss", "Loss over training (nats by step)", lossCurve(steps, data.row(quanta.loss_curve, quantum), quanta.emergence_step?.[quantum], largestLoss)) : null,
    titled("nearest", "Nearest quanta", near.length
      ? h("ul", { class: "near" }, near.map(([other, cosine]) => h("li", null, h("a", { ...link({ quantum: other, unit: null }), "aria-label": labelText(data, other) }, label(data, other)), bar(cosine, `cosine ${fixed(cosine)}`), h("span", { "aria-hidden": "true" }, fixed(cosine)))))
      : empty("None: this is the only quantum.")),
    quanta.interferes.length ? titled("interferes", "Interferes with", pairs(data, quanta.interferes[quantum],
      ({ cosine, null_low: low }) => [bar(cosine / Math.min(...quanta.interferes[quantum].map((met) => met.cosine)), `mean cosine ${fixed(cosine, 3)}`), h("span", { "aria-hidden": "true" }, fixed(cosine, 3)), h("small", { class: "beside" }, `null ${fixed(low, 3)}`)], "No quantum, beyond chance.")) : null,
    quanta.used_with.length ? titled("usedWith", "Used in the same documents", pairs(data, quanta.used_with[quantum],
      ({ num_documents: documents, expected }) => [bar(documents / quanta.num_documents[quantum], plural(documents, "document")), h("span", { "aria-hidden": "true" }, count(documents)), h("small", { class: "beside" }, `chance ${fixed(expected, 1)}`)], "None, beyond chance.")) : null,
    top.length ? section("Documents that use it most", h("ul", { class: "near" }, top.map(({ document, num_units: units }) =>
      h("li", null, h("span", { class: "source" }, prose(data.documents[document].name)), bar(units / top[0].num_units, plural(units, "unit")), h("span", { "aria-hidden": "true" }, count(units)))))) : null,
  ];
}
