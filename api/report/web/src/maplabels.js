// The labels on the map: each quantum's name at the middle of its points, more of them as one zooms in, none over another.

import { accent, dark } from "./colours.js";
import { missing } from "./format.js";
import { spoken } from "./text.js";

const FONT = '11px ui-monospace, "SF Mono", "Cascadia Mono", "DejaVu Sans Mono", monospace';

const median = (values) => values.sort((a, b) => a - b)[values.length >> 1];

// Most used first.
export function places(data, x, y) {
  return data.byUse.flatMap((quantum) => {
    const units = data.members[quantum].filter((unit) => !missing(x[unit]) && !missing(y[unit]));
    return units.length ? [{ quantum, x: median(units.map((unit) => x[unit])), y: median(units.map((unit) => y[unit])), text: shortName(data, quantum) }] : [];
  });
}

function shortName(data, quantum) {
  const before = data.quanta.pattern[quantum].slice(-2).map((token) => (token === null ? "…" : token.trim() || spoken(token))).join(" ");
  const name = [...`${before} ▸ ${spoken(data.quanta.target[quantum])}`];
  return (name.length > 22 ? [...name.slice(-22)] : name).join("").replaceAll(/[\u0000-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f]/g, "?");
}

export function drawLabels(context, labelled, { scale, size, place, chosen, matched }) {
  const limit = Math.round(9 * scale ** 1.3 * Math.max(0.5, size.width / 700));
  const taken = [];
  context.font = FONT;
  context.textBaseline = "middle";
  context.textAlign = "left";
  context.lineJoin = "round";
  const wanted = chosen === null ? labelled.filter((entry) => !matched || matched.has(entry.quantum)) : labelled.filter((entry) => entry.quantum === chosen);
  let drawn = 0;
  for (const entry of wanted) {
    if (drawn >= limit) break;
    const [middle, top] = place(entry);
    const width = context.measureText(entry.text).width;
    const left = chosen === null ? middle - width / 2 : Math.max(4, Math.min(middle - width / 2, size.width - width - 4));
    const rectangle = [left - 3, top - 8, left + width + 3, top + 8];
    if (rectangle[0] < 0 || rectangle[2] > size.width || rectangle[1] < 0 || rectangle[3] > size.height) continue;
    if (taken.some((other) => rectangle[0] < other[2] && other[0] < rectangle[2] && rectangle[1] < other[3] && other[1] < rectangle[3])) continue;
    taken.push(rectangle);
    drawn++;
    context.strokeStyle = dark() ? "rgb(23 24 26 / .85)" : "rgb(255 255 255 / .88)";
    context.lineWidth = 4;
    context.strokeText(entry.text, left, top);
    context.fillStyle = entry.quantum === chosen ? accent() : dark() ? "#f0f0ee" : "#1c1d1f";
    context.fillText(entry.text, left, top);
  }
}
