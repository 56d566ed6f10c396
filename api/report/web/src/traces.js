// Saved behaviours: which quanta each uses, and which training units stand behind it.

import { ofRank } from "./colours.js";
import { defined } from "./definitions.js";
import { empty, h, section } from "./dom.js";
import { fixed, missing, percent } from "./format.js";
import { lines } from "./quantum.js";
import { link } from "./state.js";
import { label, labelText, prose, tinted, visible } from "./text.js";
import { explain } from "./tip.js";

const AT_ONCE = 6;

export function traces(data) {
  const element = h("section", { class: "page" }, h("h2", null, "Traces"),
    h("p", { class: "lead" }, "Behaviours that were traced: the quanta that each uses, and the training units behind it."),
    data.traces.length ? data.traces.map((trace) => article(data, trace)) : empty("No behaviour was traced when this report was made. The command is: quantascope trace RUN PROMPT COMPLETION."));
  return { element, update() {} };
}

function article(data, trace) {
  const total = trace.quanta.reduce((sum, { weight }) => sum + Math.max(0, weight), 0) || 1;
  return h("article", { class: "trace" },
    h("h3", null, prose(trace.title)),
    behaviour(trace),
    trace.sentence ? h("p", null, prose(trace.sentence)) : null,
    missing(trace.novelty) ? null : novelty(trace.novelty),
    trace.quanta.length ? [stack(data, trace.quanta, total), weights(data, trace.quanta)] : empty("No quantum stands out: none has a weight above what a row without any relation would give."),
    h("div", { class: "sides" },
      found(data, "Supporting training units", trace.supporting, "None: no unit pushes towards it."),
      found(data, "Opposing training units", trace.opposing, "None: no unit pushes against it."),
      trace.lexical.length ? found(data, "What a search by words would have given", trace.lexical, "") : null));
}

function behaviour({ prompt, completion, contributions }) {
  const split = prompt.length;
  const nodes = contributions
    ? tinted([...prompt, ...completion], contributions, { lines: true })
    : [...prompt, ...completion].map((token) => h("span", null, visible(token, { lines: true })));
  return h("pre", { class: "text behaviour" }, nodes.slice(0, split), h("mark", { class: "target" }, nodes.slice(split)));
}

const novelty = (share) => h("p", { class: "novelty" },
  explain(h("span", null, `Stranger than ${percent(share)} of training units`), defined("novelty")),
  h("span", { class: "gauge", role: "img", "aria-label": percent(share) }, h("span", { style: { left: `${share * 100}%` } })));

const stack = (data, quanta, total) => h("div", { class: "stack", role: "img", "aria-label": "Weights of the quanta, side by side" },
  quanta.filter(({ weight }) => weight > 0).map(({ quantum, weight }) =>
    h("span", { title: `${labelText(data, quantum)}: ${percent(weight / total)}`, style: { width: `${(weight / total) * 100}%`, background: ofRank(data.rankOf[quantum]) } })));

function weights(data, quanta) {
  const ends = quanta.flatMap(({ weight, low, high }) => [weight, low, high]);
  const [least, most] = [Math.min(0, ...ends), Math.max(1e-9, ...ends)];
  const place = (value) => `${((value - least) / (most - least)) * 100}%`;
  const wide = (from, to) => `${((to - from) / (most - least)) * 100}%`;
  return h("ul", { class: "weights" }, quanta.map(({ quantum, weight, low, high }) => h("li", null,
    h("a", { ...link({ view: "quanta", quantum }), "aria-label": labelText(data, quantum) }, label(data, quantum)),
    h("span", { class: "track", "aria-hidden": "true" },
      h("span", { class: "fill", style: { left: place(Math.min(0, weight)), width: wide(Math.min(0, weight), Math.max(0, weight)), background: ofRank(data.rankOf[quantum]) } }),
      h("span", { class: "whisker", style: { left: place(low), width: wide(low, high) } })),
    explain(h("span", { class: "value" }, fixed(weight, 3), h("small", { class: "quiet" }, ` ${fixed(low, 3)} to ${fixed(high, 3)}`)), defined("weight")))));
}

function found(data, title, entries, nothing) {
  const list = (some) => h("ul", { class: "lines" }, some.map((entry) => (entry.unit !== null ? [...lines(data, [entry.unit], { scores: [entry.score] }).children] : [windowLine(data, entry)])).flat());
  const place = h("div", null, entries.length ? list(entries.slice(0, AT_ONCE)) : empty(nothing));
  const rest = entries.length - AT_ONCE;
  const more = rest > 0 ? h("button", { type: "button", on: { click: () => { place.append(list(entries.slice(AT_ONCE))); more.remove(); } } }, `Show ${rest} more`) : null;
  return section(title, place, more);
}

function windowLine(data, { window, score }) {
  const { name, line } = data.source(window);
  return h("li", null,
    h("a", { class: "open", ...link({ window, unit: null }) }, h("span", { class: "line start" }, visible(data.tokens(window).slice(0, 40).join("")))),
    h("span", { class: "where quiet" }, h("span", { class: "score" }, fixed(score, 3)), h("span", { class: "source" }, prose(name), line === null ? null : `:${line}`)));
}
