// The quanta beside their rivals, each with interval and null.

import { interval } from "./charts.js";
import { empty, h } from "./dom.js";
import { fixed, missing } from "./format.js";
import { prose } from "./text.js";
import { explain } from "./tip.js";

export function evidence(data) {
  const { sentence, first, second, plain, rows } = data.evidence ?? { rows: [] };
  const scales = ["first", "second"].map((key) => scaleOf(rows.map((row) => row[key]).filter(Boolean)));
  const shown = { second: rows.some((row) => row.second), plain: rows.some((row) => !missing(row.plain)) };
  const head = (measure) => h("th", { scope: "col" }, explain(h("span", null, prose(measure.name, 80)), measure));
  const element = h("section", { class: "page evidence" },
    h("h2", null, "Evidence"),
    sentence ? h("p", { class: "lead" }, prose(sentence)) : null,
    rows.length && first
      ? h("div", { class: "scroll" }, h("table", null,
          h("thead", null, h("tr", null, h("th", { scope: "col" }, "Rows"), head(first), shown.second ? head(second) : null, shown.plain ? head(plain) : null)),
          h("tbody", null, rows.map((row) => h("tr", { class: row.ours ? "ours" : null },
            h("th", { scope: "row" }, prose(row.name, 160)), cells(row.first, scales[0]), shown.second ? cells(row.second, scales[1]) : null, shown.plain ? h("td", { class: "number" }, fixed(row.plain)) : null)))))
      : empty("No comparison was made in this run."),
    rows.length ? h("p", { class: "quiet" }, "Dot: the value. Line: its 95 % interval. Grey: what the null reaches in 99 of 100 cases; a dot inside the grey shows nothing.") : null,
    data.together.length ? h("section", { class: "part" }, h("h3", null, "All quanta together"), h("ul", { class: "together" }, data.together.map((one) => h("li", null, prose(one, 600))))) : null);
  return { element, update() {} };
}

const scaleOf = (values) => [
  Math.min(0, ...values.map(({ low }) => low)),
  Math.max(...values.map(({ high, null_99: bar }) => Math.max(high, missing(bar) ? high : bar)), 0.01) * 1.04,
];

function cells(value, scale) {
  if (!value) return h("td", { class: "number quiet" }, "–");
  const { value: middle, low, high, null_99: bar } = value;
  return h("td", { class: "measured" }, h("div", null,
    h("span", { class: "number" }, fixed(middle, 3), h("small", null, `${fixed(low, 3)} to ${fixed(high, 3)}`), missing(bar) ? null : h("small", null, `null ${fixed(bar, 3)}`)),
    interval(value, scale)));
}
