// The one state object, mirrored in the address bar's hash: a copied link shows what its sender saw.
// What a reader goes to (a quantum, a view, a window) makes an entry in the history; sorting and typing don't.

const DEFAULTS = {
  view: "quanta", quantum: null, unit: null, window: null, sort: "use", order: "down", search: "",
  cut: null, toggled: [], colour: "quantum",
};
const VIEWS = ["quanta", "evidence", "frequency", "traces", "tree", "run"];
const CHOICES = {
  view: VIEWS, order: ["up", "down"], colour: ["quantum", "loss", "cosine"],
  sort: ["label", "use", "size", "loss", "coherence", "emergence"],
};
const STEPS = ["view", "quantum", "unit", "window"];

const listeners = [];
let limits = {};
export let state = { ...DEFAULTS };

const natural = (text, limit) => (/^\d{1,9}$/.test(text) && Number(text) < (limit ?? Infinity) ? Number(text) : null);

function parse(hash) {
  const next = { ...DEFAULTS };
  for (const [key, text] of new URLSearchParams(hash.replace(/^#/, ""))) {
    if (key in CHOICES) next[key] = CHOICES[key].includes(text) ? text : DEFAULTS[key];
    else if (key === "quantum" || key === "unit" || key === "window") next[key] = natural(text, limits[key]);
    else if (key === "search") next.search = text.slice(0, 200);
    else if (key === "cut" && Number.isFinite(Number.parseFloat(text))) next.cut = Number.parseFloat(text);
    else if (key === "toggled") next.toggled = text.split(".").map((part) => natural(part)).filter((id) => id !== null);
  }
  return next;
}

export function hashOf(patch = {}) {
  const wanted = { ...state, ...patch };
  const parts = new URLSearchParams();
  for (const [key, value] of Object.entries(wanted)) {
    const text = Array.isArray(value) ? value.join(".") : String(value ?? "");
    const usual = Array.isArray(DEFAULTS[key]) ? "" : String(DEFAULTS[key] ?? "");
    if (text !== usual) parts.set(key, text);
  }
  return `#${parts}`;
}

function apply(next) {
  const before = state;
  state = next;
  for (const listener of listeners) listener(state, before);
}

export function go(patch) {
  const hash = hashOf(patch);
  if (hash === hashOf()) return;
  const isStep = STEPS.some((key) => key in patch && patch[key] !== state[key]);
  apply({ ...state, ...patch });
  if (isStep) location.hash = hash;
  else location.replace(hash);
}

export const subscribe = (listener) => listeners.push(listener);

export function start(numbers) {
  limits = numbers;
  state = parse(location.hash);
  addEventListener("hashchange", () => {
    const next = parse(location.hash);
    if (JSON.stringify(next) !== JSON.stringify(state)) apply(next);
  });
  apply(state);
}

// A link that changes part of the state; works with the middle button and in copied text too.
export const link = (patch) => ({
  href: hashOf(patch),
  on: {
    click(event) {
      if (event.metaKey || event.ctrlKey || event.shiftKey) return;
      event.preventDefault();
      go(patch);
    },
  },
});
