// What a loop drawn on the map holds: a table of its units, and their export.

import { h } from "./dom.js";
import { fixed, plural } from "./format.js";
import { link } from "./state.js";
import { context, contextLine, labelText } from "./text.js";

const SHOWN = 100;

// The units whose points lie inside the loop (even-odd rule).
export function inside(loop, count, toX, toY) {
  const holds = (left, top) => {
    let within = false;
    for (let i = 0, j = loop.length - 1; i < loop.length; j = i++) {
      const [[ax, ay], [bx, by]] = [loop[i], loop[j]];
      if (ay > top !== by > top && left < ((bx - ax) * (top - ay)) / (by - ay) + ax) within = !within;
    }
    return within;
  };
  return Array.from({ length: count }, (_, unit) => unit).filter((unit) => holds(toX(unit), toY(unit)));
}

export function selectionTable(data, units, close) {
  const shut = h("button", { type: "button", on: { click: close } }, "Close");
  if (!units.length) return [h("p", { class: "quiet" }, "No points in that loop. ", shut)];
  const save = h("a", { class: "button", download: "units.csv", href: URL.createObjectURL(new Blob([table(data, units)], { type: "text/csv" })) }, "Export as CSV");
  return [
    h("p", null, `${plural(units.length, "unit")} in the loop. `, save, " ", shut),
    h("ul", { class: "lines" }, units.slice(0, SHOWN).map((unit) => h("li", null, h("a", link({ unit }), contextLine(data, unit, { length: 24 }))))),
    units.length > SHOWN ? h("p", { class: "quiet" }, `The first ${SHOWN}; the export holds all.`) : null,
  ].filter(Boolean);
}

// A cell that a spreadsheet would take for a formula gets an apostrophe in front.
const cell = (value) => {
  const text = String(value);
  return `"${(/^[=+\-@\t\r]/.test(text) && !/^-?[\d.]+$/.test(text) ? `'${text}` : text).replaceAll('"', '""')}"`;
};

function table(data, units) {
  const rows = units.map((unit) => {
    const { before, token } = context(data, unit, 24);
    const quantum = data.units.quantum[unit];
    const { name, line, offset } = data.source(data.units.window[unit], data.units.target[unit]);
    return [unit, quantum, quantum < 0 ? "" : labelText(data, quantum), name, line ?? "", offset, fixed(data.units.loss[unit], 4).replace("−", "-"), before.join(""), token];
  });
  return [["unit", "quantum", "label", "document", "line", "offset", "loss", "context", "token"], ...rows].map((row) => row.map(cell).join(",")).join("\r\n");
}
