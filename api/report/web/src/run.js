// How the report was made: enough to judge the run, and to make it again.

import { h, section } from "./dom.js";
import { count } from "./format.js";
import { prose } from "./text.js";

export function runFacts(data) {
  const { facts, checkpoint_steps: steps } = data;
  const speed = facts.tokens_per_second === null ? null : `${count(facts.tokens_per_second)} tokens per second`;
  const main = {
    Units: count(data.numUnits), Quanta: count(data.numQuanta), "Gradient rows": count(facts.num_rows), "Numbers per row (D)": count(facts.dimension),
    Projection: facts.projection, Speed: speed, Windows: count(data.windows.document.length), Documents: count(data.documents.length),
    Checkpoints: steps?.length ? `${steps.length}: steps ${Array.from(steps, count).join(", ")}` : null, ...facts.other,
  };
  const element = h("section", { class: "page" }, h("h2", null, "How it was made"),
    facts.commands.length ? section("Commands", h("pre", { class: "commands", tabindex: 0 }, facts.commands.map((command) => [prose(command.replaceAll(/\s*\n\s*/g, " "), 500), "\n"]))) : null,
    section("The run", pairs(main)),
    Object.keys(facts.versions).length ? section("Versions", pairs(facts.versions)) : null,
    Object.keys(facts.fingerprints).length ? section("Fingerprints", pairs(facts.fingerprints, true)) : null);
  return { element, update() {} };
}

const pairs = (entries, code) => h("dl", { class: code ? "code" : null }, Object.entries(entries).filter(([, value]) => value !== null && value !== "").map(([name, value]) => h("div", null, h("dt", null, prose(name, 160)), h("dd", null, prose(String(value))))));
