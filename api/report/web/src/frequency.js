// Sizes of the quanta by rank, both axes logarithmic: points, the fit with its band, the null's band in grey.

import { ofRank } from "./colours.js";
import { empty, h, svg } from "./dom.js";
import { count, fixed } from "./format.js";
import { link } from "./state.js";
import { labelText, prose } from "./text.js";

export function frequency(data) {
  const { sizes, fit, sentence, alternatives } = data.rank_frequency;
  const frame = h("div", { class: "plot" });
  const key = (name, text) => h("li", null, h("span", { class: `key ${name}` }), text);
  const element = h("section", { class: "page" },
    h("h2", null, "Rank and frequency"),
    sentence ? h("p", { class: "lead" }, prose(sentence)) : null,
    alternatives ? h("p", null, prose(alternatives)) : null,
    sizes.length ? frame : empty("No sizes to plot: this run has no quanta."),
    h("ul", { class: "keys" }, key("point", "a quantum; the ten most used in their colours"),
      fit ? key("line", `fit over ranks ${fit.first_rank} to ${fit.last_rank}: slope ${fixed(fit.slope)} (${fixed(fit.low)} to ${fixed(fit.high)})`) : null,
      data.rank_frequency.null_band ? key("null", "what the null gives") : null));
  new ResizeObserver(([entry]) => entry.contentRect.width && sizes.length && frame.replaceChildren(plot(data, entry.contentRect.width))).observe(frame);
  return { element, update() {} };
}

function plot(data, width) {
  const { sizes, quantum, fit, fit_band: fitBand, null_band: nullBand } = data.rank_frequency;
  const height = Math.max(260, Math.min(560, width * 0.62));
  const [left, right, top, bottom] = [56, 16, 12, 44];
  const positive = (values) => [...(values ?? [])].filter((value) => value > 0);
  const all = [sizes, nullBand?.low, nullBand?.high, fitBand?.low, fitBand?.high].flatMap(positive);
  const [low, high] = [Math.log10(Math.min(...all)) - 0.08, Math.log10(Math.max(...all)) + 0.08];
  const most = Math.log10(Math.max(sizes.length, nullBand?.low.length ?? 1, 2)) + 0.03;
  const x = (rank) => left + 6 + (Math.log10(rank) / most) * (width - left - right - 6);
  const y = (size) => top + ((high - Math.log10(Math.max(size, 10 ** low))) / (high - low)) * (height - top - bottom);
  const band = (name, { low: lower, high: upper }, first = 1) =>
    svg("path", { class: name, d: `M${[...Array.from(upper, (size, i) => `${x(i + first)} ${y(size)}`), ...Array.from(lower, (size, i) => `${x(i + first)} ${y(size)}`).reverse()].join("L")}Z` });
  const line = (rank) => 10 ** (fit.intercept + fit.slope * Math.log10(rank));
  // A band as long as the fitted ranks starts at the first of them; a longer one starts at rank 1.
  const fitStart = fit && fitBand && fitBand.low.length === fit.last_rank - fit.first_rank + 1 ? fit.first_rank : 1;
  return svg("svg", { class: "chart", width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": `Sizes of ${sizes.length} quanta by rank, from ${count(sizes[0])} down to ${count(sizes.at(-1))}` },
    nullBand && band("null", nullBand), fitBand && band("band", fitBand, fitStart),
    decades(0, most).map((rank) => [
      svg("line", { class: "grid", x1: x(rank), x2: x(rank), y1: top, y2: height - bottom }),
      major(rank) && svg("text", { x: x(rank), y: height - bottom + 18, "text-anchor": "middle" }, count(rank))]),
    decades(low, high).map((size) => [
      svg("line", { class: "grid", x1: left, x2: width - right, y1: y(size), y2: y(size) }),
      major(size) && svg("text", { x: left - 8, y: y(size) + 4, "text-anchor": "end" }, count(size))]),
    svg("text", { x: (left + width) / 2, y: height - 6, "text-anchor": "middle" }, "rank"),
    svg("text", { x: 14, y: (height - bottom) / 2, "text-anchor": "middle", transform: `rotate(-90 14 ${(height - bottom) / 2})` }, "units"),
    fit && svg("line", { class: "fit", x1: x(fit.first_rank), x2: x(fit.last_rank), y1: y(line(fit.first_rank)), y2: y(line(fit.last_rank)) }),
    Array.from(sizes, (size, i) => {
      const owner = quantum?.[i] ?? -1;
      if (!(size > 0)) return null;
      const dot = svg("circle", { class: owner >= 0 && data.rankOf[owner] < 10 ? "point" : "point rest", cx: x(i + 1), cy: y(size), r: 4 }, svg("title", null, `rank ${i + 1}: ${count(size)} units${owner >= 0 ? `, ${labelText(data, owner)}` : ""}`));
      if (owner >= 0 && data.rankOf[owner] < 10) dot.style.fill = ofRank(data.rankOf[owner]);
      return owner < 0 ? dot : svg("a", { ...link({ view: "quanta", quantum: owner }), tabindex: i < 10 ? 0 : -1 }, dot);
    }));
}

const major = (value) => [1, 2, 5].includes(Number((value / 10 ** Math.floor(Math.log10(value) + 1e-9)).toFixed(3)));

// 1, 2, 5, 10, … inside the range (exponents of ten).
function decades(low, high) {
  const found = [];
  for (let power = Math.floor(low); power <= high; power++) for (const factor of [1, 2, 5]) found.push(factor * 10 ** power);
  return found.filter((value) => Math.log10(value) >= low && Math.log10(value) <= high && value >= 1);
}
