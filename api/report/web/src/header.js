// The first words of the page: what was looked at, the sentence, the figures with their nulls, and the ways on.

import { h } from "./dom.js";
import { count, millions } from "./format.js";
import { link } from "./state.js";
import { prose } from "./text.js";
import { explain } from "./tip.js";

const NAMES = { quanta: "Quanta", evidence: "Evidence", frequency: "Rank and frequency", traces: "Traces", tree: "Tree", run: "How it was made" };

const present = (data) => ({ quanta: true, evidence: data.evidence || data.together.length > 0, frequency: data.rank_frequency, traces: true, tree: data.tree, run: true });

const figure = ({ name, value, null: nullText, definition, caveat, command }) =>
  h("li", null, explain(
    h("button", { type: "button", class: "figure" },
      h("span", { class: "name" }, prose(name, 60)), h("strong", null, prose(value, 40)), h("span", { class: "null" }, prose(nullText, 160))),
    { definition, caveat, command }));

export function header(data) {
  const { title, model, num_parameters: parameters, step, sentence, figures } = data.header;
  const facts = [prose(model, 160), parameters ? `${millions(parameters)} parameters` : null, step === null ? null : `step ${count(step)}`];
  const shown = present(data);
  const tabs = Object.keys(NAMES).filter((view) => shown[view]).map((view) => [view, h("a", link({ view, quantum: null, unit: null, window: null }), NAMES[view])]);
  const element = h("header", { class: "head" },
    h("div", { class: "titles" }, h("h1", null, prose(title, 160)), h("p", { class: "quiet" }, facts.filter((fact) => fact?.length).flatMap((fact, i) => (i ? [" · ", fact] : [fact])))),
    h("p", { class: "sentence" }, prose(sentence, 600)),
    figures.length ? h("ul", { class: "figures", "aria-label": "Figures" }, figures.map(figure)) : null);
  const nav = h("nav", { "aria-label": "Views" }, tabs.map(([, tab]) => tab));
  return {
    element, nav,
    update(state) {
      element.classList.toggle("compact", state.view !== "quanta" || state.quantum !== null);
      for (const [view, tab] of tabs) {
        Object.assign(tab, { href: link({ view, quantum: null, unit: null, window: null }).href });
        if (view === state.view) tab.setAttribute("aria-current", "page");
        else tab.removeAttribute("aria-current");
      }
    },
  };
}
