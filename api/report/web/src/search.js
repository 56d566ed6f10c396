// Finds quanta by their labels and by the text of their units. A quantum matches by its label, or by the first of its
// units (nearest the centroid first) whose context or predicted token holds the words.

import { context, labelText } from "./text.js";

const plain = (text) => text.replaceAll("·", " ").replaceAll("↵", "\n").replaceAll("→", "\t").toLowerCase();

export function searcher(data) {
  let labels = null;
  let texts = null;
  const prepare = () => {
    labels = data.quanta.target.map((target, quantum) => {
      const pattern = data.quanta.pattern[quantum].filter((token) => token !== null).join("");
      return [labelText(data, quantum), pattern + target, ...data.quanta.distinguishing[quantum]].join("\u0000").toLowerCase();
    });
    texts = Array.from({ length: data.numUnits }, (_, unit) => {
      const { before, token } = context(data, unit, 24);
      return (before.join("") + token).toLowerCase();
    });
  };
  // Map from quantum to the unit that matched (null where the label did), or null where nothing was searched for.
  return (words) => {
    const wanted = plain(words);
    if (!wanted.trim() && wanted !== "\n") return null;
    if (!labels) prepare();
    const found = new Map();
    data.members.forEach((members, quantum) => {
      const unit = members.find((member) => texts[member].includes(wanted));
      if (unit !== undefined) found.set(quantum, unit);
      else if (labels[quantum].includes(wanted)) found.set(quantum, null);
    });
    return found;
  };
}
