// Small charts as SVG. Each says in words what it shows; colours come from the style sheet.

import { h, svg } from "./dom.js";
import { count, fixed, missing, percent } from "./format.js";
import { prose } from "./text.js";

const path = (points) =>
  points.reduce((text, [x, y]) => (missing(y) ? text : `${text}${text ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`), "");

export function sparkline(values, largest) {
  const [width, height] = [84, 20];
  const points = Array.from(values, (value, i) => [
    1 + (i / Math.max(1, values.length - 1)) * (width - 2),
    missing(value) ? NaN : height - 2 - (Math.min(value, largest) / largest) * (height - 4),
  ]);
  const known = Array.from(values).filter((value) => !missing(value));
  const words = known.length ? `loss from ${fixed(known[0])} to ${fixed(known.at(-1))}` : "no losses known";
  return svg("svg", { class: "spark", width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": words },
    svg("line", { class: "base", x1: 1, x2: width - 1, y1: height - 1.5, y2: height - 1.5 }),
    svg("path", { class: "stroke", d: path(points) }));
}

export const bar = (share, words) =>
  h("span", { class: "bar", role: "img", "aria-label": words }, h("span", { style: { width: `${missing(share) ? 0 : Math.max(0, Math.min(1, share)) * 100}%` } }));

// Round ticks inside [low, high].
export function ticks(low, high, wanted = 4) {
  const span = high - low || 1;
  const power = 10 ** Math.floor(Math.log10(span / wanted));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => span / size <= wanted) ?? span;
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-6; value += step) found.push(Math.abs(value) < step * 1e-6 ? 0 : value);
  return found;
}

const short = (value) => (Math.abs(value) >= 10000 ? `${+(value / 1000).toPrecision(3)}k` : String(+value.toPrecision(6)).replace("-", "−"));

// Loss over checkpoints, with the fitted time of emergence.
export function lossCurve(steps, losses, emergence, largest) {
  const [width, height, left, bottom] = [320, 150, 34, 22];
  const logarithmic = steps.length > 2 && steps.at(-1) / Math.max(1, steps[1]) > 40;
  const scale = logarithmic ? (step) => Math.log(1 + step) : (step) => step;
  const [first, last] = [scale(steps[0]), scale(steps.at(-1))];
  const x = (step) => left + ((scale(step) - first) / (last - first || 1)) * (width - left - 8);
  const y = (loss) => height - bottom - (Math.min(loss, largest) / largest) * (height - bottom - 8);
  const marks = logarithmic ? [...steps].filter((_, i, all) => i % Math.ceil(all.length / 4) === 0) : ticks(steps[0], steps.at(-1), 4);
  const drop = `loss falls from ${fixed(losses[0])} to ${fixed(losses.at(-1))} nats over steps ${count(steps[0])} to ${count(steps.at(-1))}`;
  const shown = !missing(emergence) && emergence >= steps[0] && emergence <= steps.at(-1);
  return svg("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": shown ? `${drop}; half of it by step ${count(emergence)}` : drop },
    ticks(0, largest, 3).map((loss) => [
      svg("line", { class: "grid", x1: left, x2: width - 8, y1: y(loss), y2: y(loss) }),
      svg("text", { x: left - 6, y: y(loss) + 4, "text-anchor": "end" }, short(loss)),
    ]),
    marks.map((step) => svg("text", { x: x(step), y: height - 6, "text-anchor": x(step) > width - 26 ? "end" : "middle" }, short(step))),
    shown && svg("line", { class: "mark", x1: x(emergence), x2: x(emergence), y1: 8, y2: height - bottom }),
    svg("path", { class: "stroke", d: path(Array.from(losses, (loss, i) => [x(steps[i]), missing(loss) ? NaN : y(loss)])) }),
    Array.from(losses, (loss, i) => (missing(loss) ? null : svg("circle", { class: "dot", cx: x(steps[i]), cy: y(loss), r: 2.2 }))));
}

// Layers × kinds; the last layer on top, as drawings of networks have it.
export function heatMap({ layers, kinds }, shares) {
  const largest = Math.max(1e-12, ...Array.from(shares).filter((share) => !missing(share)));
  const rows = layers.map((layer, i) => ({ layer, cells: kinds.map((_, k) => shares[i * kinds.length + k]) })).reverse();
  return h("div", { class: "scroll" }, h("table", { class: "heat" },
    h("caption", { class: "hidden" }, "Share of the gradient's squared norm, by layer and kind of parameter"),
    h("thead", null, h("tr", null, h("td"), kinds.map((kind) => h("th", { scope: "col" }, h("span", null, prose(kind, 40)))))),
    h("tbody", null, rows.map(({ layer, cells }) => h("tr", null, h("th", { scope: "row" }, prose(layer, 40)), cells.map((share) =>
      missing(share)
        ? h("td", { class: "none" }, h("span", { class: "hidden" }, "none"))
        : h("td", { title: percent(share), vars: { "--strength": `${Math.round((share / largest) * 100)}%` }, class: share > largest * 0.55 ? "deep" : null }, h("span", null, (share * 100).toFixed(share < 0.0995 ? 1 : 0)))))))));
}

// A value with its interval and its null on a scale shared by the column.
export function interval({ value, low, high, null_99: bar99 }, [least, most]) {
  const width = 180;
  const x = (number) => 4 + ((Math.min(most, Math.max(least, number)) - least) / (most - least || 1)) * (width - 8);
  return svg("svg", { class: "interval", width, height: 18, viewBox: `0 0 ${width} 18`, "aria-hidden": "true" },
    !missing(bar99) && svg("rect", { class: "null", x: 0, y: 2, width: x(bar99), height: 14 }),
    svg("line", { class: "range", x1: x(low), x2: x(high), y1: 9, y2: 9 }),
    svg("circle", { class: "dot", cx: x(value), cy: 9, r: 3.5 }));
}
