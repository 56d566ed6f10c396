// Finds quanta by their labels and by the text of their units. Within a quantum, the unit shown is the one whose match
// lies nearest to its predicted token.

import { context, labelText } from "./text.js";

const LENGTH = 16;

// What a reader may have copied from the signs stands for the whitespace itself.
export const plain = (text) => text.replaceAll("·", " ").replaceAll("↵", "\n").replaceAll("→", "\t").toLowerCase();

export function searcher(data) {
  let labels = null;
  let texts = null;
  const prepare = () => {
    labels = data.quanta.target.map((target, quantum) => {
      const pattern = data.quanta.pattern[quantum].filter((token) => token !== null).join("");
      return [labelText(data, quantum), pattern + target, ...data.quanta.distinguishing[quantum]].join("\u0000").toLowerCase();
    });
    texts = Array.from({ length: data.numUnits }, (_, unit) => {
      const { before, token } = context(data, unit, LENGTH);
      return (before.join("") + token).toLowerCase();
    });
  };
  // null where nothing was searched for; else the units that match, and per matching quantum the unit to show (or null).
  return (words) => {
    const wanted = plain(words);
    if (!wanted.trim() && wanted !== "\n") return null;
    if (!labels) prepare();
    const quanta = new Map();
    const units = new Set();
    data.members.forEach((members, quantum) => {
      const byLabel = labels[quantum].includes(wanted);
      let [best, nearest] = [null, Infinity];
      for (const unit of members) {
        const place = texts[unit].lastIndexOf(wanted);
        if (place >= 0 || byLabel) units.add(unit);
        const away = texts[unit].length - place;
        if (place >= 0 && away < nearest) [best, nearest] = [unit, away];
      }
      if (best !== null || byLabel) quanta.set(quantum, best);
    });
    return { quanta, units };
  };
}
