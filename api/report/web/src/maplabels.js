// The labels on the map: each quantum's name at the middle of its points, more of them as one zooms in, none over another.

import { dark } from "./colours.js";
import { missing } from "./format.js";
import { spoken } from "./text.js";

const FONT = '12px ui-monospace, "SF Mono", "Cascadia Mono", "DejaVu Sans Mono", monospace';
const UNSHOWABLE = /[\u0000-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f]/g;

const median = (values) => values.sort((a, b) => a - b)[values.length >> 1];

// Most used first.
export function places(data, x, y) {
  return data.byUse.flatMap((quantum) => {
    const units = data.members[quantum].filter((unit) => !missing(x[unit]) && !missing(y[unit]));
    if (!units.length) return [];
    return [{ quantum, x: median(units.map((unit) => x[unit])), y: median(units.map((unit) => y[unit])), ...names(data, quantum) }];
  });
}

const brief = (token) => spoken(token).replaceAll(/·{3,}/g, "··").replaceAll(UNSHOWABLE, "?");

function names(data, quantum) {
  const before = data.quanta.pattern[quantum].slice(-2).map((token) => (token === null ? "…" : brief(token))).join("");
  return { before: [...before].slice(-12).join(""), target: [...brief(data.quanta.target[quantum])].slice(0, 12).join("") };
}

export function drawLabels(context, labelled, { scale, size, place, matched }) {
  const limit = Math.round(9 * scale ** 1.3 * Math.max(0.5, size.width / 700));
  const taken = [];
  Object.assign(context, { font: FONT, textBaseline: "middle", textAlign: "left", lineJoin: "round" });
  for (const entry of labelled) {
    if (taken.length >= limit) break;
    if (matched && !matched.has(entry.quantum)) continue;
    const [middle, top] = place(entry);
    const [first, second] = [context.measureText(entry.before).width, context.measureText(entry.target).width];
    const left = middle - (first + second) / 2;
    const box = [left - 4, top - 9, left + first + second + 4, top + 9];
    if (box[0] < 0 || box[2] > size.width || box[1] < 0 || box[3] > size.height) continue;
    if (taken.some((other) => box[0] < other[2] && other[0] < box[2] && box[1] < other[3] && other[1] < box[3])) continue;
    taken.push(box);
    text(context, entry, left, top, first, second);
  }
}

// What comes before in grey, the predicted token boxed as everywhere else.
function text(context, { before, target }, left, top, first, second) {
  context.fillStyle = dark() ? "rgb(31 32 35 / .82)" : "rgb(255 255 255 / .85)";
  context.fillRect(left - 3, top - 8, first + 3, 16);
  context.fillStyle = dark() ? "rgb(74 61 16 / .92)" : "rgb(255 242 196 / .92)";
  context.strokeStyle = dark() ? "#d9b23c" : "#b98900";
  context.lineWidth = 1;
  context.beginPath();
  context.roundRect(left + first, top - 8.5, second + 4, 17, 3);
  context.fill();
  context.stroke();
  context.fillStyle = dark() ? "#d6d8da" : "#44474c";
  context.fillText(before, left - 1, top);
  context.fillStyle = dark() ? "#f0f0ee" : "#1c1d1f";
  context.fillText(target, left + first + 2, top);
}
