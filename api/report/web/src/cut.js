// The control that folds quanta together along the tree; the list and the tree share it.

import { h } from "./dom.js";
import { fixed } from "./format.js";
import { groupsAt } from "./groups.js";
import { go, state } from "./state.js";

export function cutControl(tree) {
  const [low, high] = tree.range;
  const slider = h("input", { type: "range", min: low, max: high, step: (high - low) / 100 || 0.01, "aria-label": "Fold groups with at least this mean cosine",
    on: { input: () => go({ cut: Number(Number(slider.value).toFixed(3)), toggled: [] }) } });
  const check = h("input", { type: "checkbox", on: { change: () => go({ cut: check.checked ? Number(((low + high) / 2).toFixed(3)) : null, toggled: [] }) } });
  const words = h("output", null);
  const update = () => {
    check.checked = state.cut !== null;
    slider.hidden = words.hidden = state.cut === null;
    if (state.cut !== null) {
      slider.value = state.cut;
      words.textContent = `cosine ≥ ${fixed(state.cut)}: ${groupsAt(tree, state.cut).length} groups`;
    }
  };
  return { element: h("span", { class: "cut" }, h("label", null, check, " Fold along the tree"), slider, words), update };
}
