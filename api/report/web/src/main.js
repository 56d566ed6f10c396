// Reads the data, puts the views together, and lets the state decide which one is seen.

import { load } from "./data.js";
import { h } from "./dom.js";
import { evidence } from "./evidence.js";
import { frequency } from "./frequency.js";
import { forest } from "./groups.js";
import { header } from "./header.js";
import { list } from "./list.js";
import { map } from "./map.js";
import { quantumPage } from "./quantum.js";
import { runFacts } from "./run.js";
import { searcher } from "./search.js";
import { go, start, state, subscribe } from "./state.js";
import { install } from "./tip.js";
import { traces } from "./traces.js";
import { treeView } from "./tree.js";
import { windowDialog } from "./window.js";

// The list beside the map, and a quantum's page beside the list: the map moves between the two.
function quantaView(data, tree) {
  const search = remember(searcher(data));
  const parts = { map: map(data, search), list: list(data, tree, search) };
  const place = h("div");
  const page = quantumPage(data, place);
  const element = h("div", { class: "quanta-view" }, parts.list.element, parts.map.element, page.element);
  return {
    element,
    update(now, before) {
      const opened = now.quantum !== null;
      element.classList.toggle("opened", opened);
      page.element.hidden = !opened;
      if (opened) page.update(now);
      const home = opened ? place : element;
      if (parts.map.element.parentNode !== home) opened ? place.append(parts.map.element) : page.element.before(parts.map.element);
      parts.list.update(now, before);
      parts.map.update(now, before);
      if (now.quantum !== before.quantum && now.view === before.view) {
        if (opened && before.quantum !== null) page.element.scrollTop = 0;
        requestAnimationFrame(() => opened && document.activeElement === document.body && page.element.focus({ preventScroll: true }));
        scrollTo({ top: opened ? Math.min(scrollY, element.getBoundingClientRect().top + scrollY - 56) : 0 });
      }
    },
  };
}

// The list and the map ask for the same search.
function remember(search) {
  let last = [null, null];
  return (words) => (last[0] === words ? last[1] : (last = [words, search(words)])[1]);
}

function mount(data) {
  const tree = data.tree ? forest(data) : null;
  const makers = {
    quanta: () => quantaView(data, tree), traces: () => traces(data), run: () => runFacts(data),
    evidence: (data.evidence || data.together.length > 0) && (() => evidence(data)),
    frequency: data.rank_frequency && (() => frequency(data)),
    tree: tree && (() => treeView(data, tree)),
  };
  const views = {};
  const head = header(data);
  const main = h("main", { tabindex: -1 });
  const dialog = windowDialog(data);
  const app = document.getElementById("app");
  app.replaceChildren(head.element, head.nav, main, dialog.element);
  install(app);
  subscribe((now, before) => {
    const name = makers[now.view] ? now.view : "quanta";
    const view = (views[name] ??= makers[name]());
    if (main.firstChild !== view.element) {
      main.replaceChildren(view.element);
      if (now !== before) scrollTo({ top: 0 });
    }
    head.update(now);
    view.update(now, before);
    dialog.update(now);
  });
  start({ quantum: data.numQuanta, unit: data.numUnits, window: data.windows.document.length });
  addEventListener("keydown", (event) => {
    if (event.key === "Escape" && state.quantum !== null && !event.target.closest("input, select") && !dialog.element.open && !event.defaultPrevented) go({ quantum: null });
    if (event.key === "/" && !event.target.closest("input, textarea, select")) {
      const box = main.querySelector("input[type=search]");
      if (box) event.preventDefault();
      box?.focus();
    }
  });
  app.removeAttribute("aria-busy");
}

load().then(mount).catch((error) => {
  const app = document.getElementById("app");
  app.replaceChildren(h("p", { class: "notice", role: "alert" }, h("strong", null, "This report cannot be read. "), `${error.message}. A current Firefox, Chrome, Edge or Safari opens it; if this one is current, the file may be damaged: export it again.`));
  app.removeAttribute("aria-busy");
  throw error;
});
