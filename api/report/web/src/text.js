// Text of the data, made visible: quiet signs for whitespace, code points for what cannot be seen or would turn the
// line around, and the lines that show a unit in its context.

import { h } from "./dom.js";

const PARTS = /( +)|(\r?\n)|(\t)|([\u0000-\u0008\u000b-\u001f\u007f-\u00a0\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\ufff9-\ufffb\ud800-\udfff])/u;
const LONGEST_TOKEN = 80;

// The sign is drawn by the style sheet; the text itself lies in it, at no size.
const sign = (kind, shown, real) => h("span", { class: `sign ${kind}`, "data-shown": shown }, real && h("i", null, real));

// Nodes for a text. `lines`: break lines where the text does; otherwise a newline is only a sign. What is copied out of
// the page is the text itself, not the signs.
export function visible(text, { lines = false, spaces: marked = true } = {}) {
  const nodes = [];
  let rest = text;
  while (rest.length) {
    const found = PARTS.exec(rest);
    if (!found) {
      nodes.push(rest);
      break;
    }
    if (found.index) nodes.push(rest.slice(0, found.index));
    const [whole, spaces, newline, tab] = found;
    if (spaces && !marked) nodes.push(spaces);
    else if (spaces) nodes.push(sign("space", "·".repeat(spaces.length), spaces));
    else if (newline) nodes.push(sign("newline", "↵", ""), lines ? "\n" : "");
    else if (tab) nodes.push(sign("tab", "→", "\t"));
    else nodes.push(h("span", { class: "sign code" }, codePoint(whole)));
    rest = rest.slice(found.index + whole.length);
  }
  return nodes;
}

const cut = (text, length) => (text.length > length ? `${[...text.slice(0, 2 * length)].slice(0, length - 1).join("")}…` : text);

// Words rather than code: only what cannot be seen is marked.
export const prose = (text, length = 1000) => visible(cut(text, length), { spaces: false });

// The same for attributes and canvases, which hold no elements.
export const plainProse = (text, length = 200) =>
  cut(text, length).replaceAll(new RegExp(PARTS, "gu"), (whole, spaces, newline, tab, hidden) => (hidden ? codePoint(hidden) : spaces ? whole : " "));

const codePoint = (letter) => `U+${letter.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;

export const cutToken = (token) => cut(token, LONGEST_TOKEN);

// A token as plain text, for names that screen readers say and for search.
export const spoken = (token) =>
  token === "" ? "(empty)" : cutToken(token).replaceAll("\n", "↵").replaceAll("\t", "→").replaceAll(/^ +$|^ +| +$/g, (run) => "·".repeat(run.length));

export const box = (token) => h("mark", { class: "target" }, token === "" ? h("span", { class: "sign code" }, "empty") : visible(cutToken(token)));

// A quantum's label: the positions before the predicted token, with a gap where they differ, and the token.
export function label(data, quantum) {
  const pattern = data.quanta.pattern[quantum];
  const first = pattern.findIndex((token) => token !== null);
  const pieces = [];
  if (first >= 0) {
    for (const token of pattern.slice(first)) {
      if (token !== null) pieces.push(h("span", { class: "piece" }, visible(cutToken(token))));
      else if (!pieces.length || !pieces.at(-1).classList.contains("gap")) pieces.push(h("span", { class: "piece gap", title: "positions that differ" }, "…"));
    }
  }
  return h("span", { class: "label" }, pieces.length ? h("span", { class: "pattern" }, h("span", null, pieces)) : null, box(data.quanta.target[quantum]));
}

export const labelText = (data, quantum) => plainProse(data.quanta.phrase[quantum] || `predicts ${spoken(data.quanta.target[quantum])}`);

export const context = (data, unit, length = 40) => {
  const tokens = data.tokens(data.units.window[unit]);
  const target = data.units.target[unit];
  return { before: tokens.slice(Math.max(0, target - length), target), token: tokens[target], after: tokens.slice(target + 1, target + 13) };
};

// One line with a unit in its context: the predicted token boxed, always at the same place, so that lines beneath each
// other can be compared.
export function contextLine(data, unit, { length = 40, found = "" } = {}) {
  const { before, token, after } = context(data, unit, length);
  const tints = data.tints.get(unit);
  const earlier = tints ? tinted(before, tints.subarray(Math.max(0, tints.length - before.length))) : marked(before.map(cutToken).join(""), found);
  return h("span", { class: "line" }, h("span", { class: "before" }, h("span", null, earlier)), box(token), h("span", { class: "after" }, visible(after.map(cutToken).join(""))));
}

// The last place where the words that were searched for stand.
function marked(text, found) {
  const place = found ? text.toLowerCase().lastIndexOf(found) : -1;
  if (place < 0) return visible(text);
  return [visible(text.slice(0, place)), h("span", { class: "found" }, visible(text.slice(place, place + found.length))), visible(text.slice(place + found.length))];
}

// Tokens tinted by one number each: one colour for what helps, another for what hurts.
export function tinted(tokens, values, options) {
  const largest = Math.max(1e-12, ...Array.from(values, Math.abs).filter(Number.isFinite));
  const skipped = tokens.length - values.length;
  return tokens.map((token, i) => {
    const value = values[i - skipped];
    if (!Number.isFinite(value)) return h("span", null, visible(cutToken(token), options));
    const strength = Math.round((Math.abs(value) / largest) * 70);
    return h("span", { class: value < 0 ? "hurts" : "helps", vars: { "--strength": `${strength}%` }, title: value.toPrecision(2) }, visible(cutToken(token), options));
  });
}
