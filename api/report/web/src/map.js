// The map of all units on a canvas: zoom, move, hover, select. Positions are centred and scaled once and kept as
// doubles, so that deep zoom keeps its precision. (WebGL libraries compile code from text, which the page's policy
// refuses; a canvas draws some hundred thousand points well enough.)

import { accent, dark, ofRank, onTheme, ramp } from "./colours.js";
import { empty, h } from "./dom.js";
import { fixed, missing } from "./format.js";
import { inside, selectionTable } from "./lasso.js";
import { drawLabels, places } from "./maplabels.js";
import { go, state } from "./state.js";
import { contextLine, label } from "./text.js";
import { hide, show } from "./tip.js";

const NAMES = { quantum: "quantum", loss: "loss", cosine: "cosine" };

export function map(data, search) {
  const { x, y } = centred(data.units);
  const labelled = places(data, x, y);
  const canvas = h("canvas", { tabindex: 0, role: "img", "aria-label": `Map of ${data.numUnits} units. Plus and minus zoom, arrows move, 0 shows all. The list holds the same quanta as text.` });
  const context = canvas.getContext("2d");
  const choice = h("select", { "aria-label": "Colour of the points", on: { change: () => go({ colour: choice.value }) } },
    Object.entries(NAMES).map(([value, name]) => h("option", { value }, `by ${name}`)));
  const lassoButton = h("button", { type: "button", "aria-pressed": "false", title: "Draw around points to list them (or hold Shift)", on: { click: () => setLasso(!lassoOn) } }, "Lasso");
  const legend = h("span", { class: "legend quiet" });
  const table = h("div", { class: "selection" });
  const button = (name, text, act) => h("button", { type: "button", "aria-label": name, title: name, on: { click: act } }, text);
  const placed = x.some((value, unit) => !missing(value) && !missing(y[unit]));
  const frame = h("div", { class: "frame" }, canvas, placed ? null : empty("No unit of this run has a place on the map."), h("div", { class: "zoom" }, button("Zoom in", "+", () => zoom(1.6)), button("Zoom out", "−", () => zoom(1 / 1.6)), button("Show all", "⤢", reset)));
  const element = h("section", { class: "map", "aria-label": "Map" }, h("div", { class: "controls" }, choice, lassoButton, legend), frame, table);

  let view = { scale: 1, x: 0, y: 0 };
  let size = { width: 0, height: 0 };
  let matched = null;
  let hovered = -1;
  let lassoOn = false;
  let loop = null;
  let waiting = false;

  const spread = () => (Math.min(size.width, size.height) / 2 - 14) * view.scale;
  const toX = (unit) => size.width / 2 + view.x + x[unit] * spread();
  const toY = (unit) => size.height / 2 + view.y - y[unit] * spread();
  const later = () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; draw(); });
  };

  function colourOf(unit) {
    if (state.colour === "quantum") return ofRank(data.units.quantum[unit] < 0 ? -1 : data.rankOf[data.units.quantum[unit]]);
    const value = data.units[state.colour][unit];
    return missing(value) ? ofRank(-1) : ramp(state.colour === "loss" ? value / Math.max(1e-9, highest.loss) : value);
  }
  const highest = { loss: [...data.units.loss].filter((loss) => !missing(loss)).reduce((a, b) => Math.max(a, b), 0) };
  let colours = [];
  const recolour = () => (colours = Array.from({ length: data.numUnits }, (_, unit) => colourOf(unit)));

  function draw() {
    const ratio = devicePixelRatio || 1;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, size.width, size.height);
    const chosen = state.quantum === null ? null : (unit) => data.units.quantum[unit] === state.quantum;
    const lit = chosen ?? (matched && ((unit) => matched.units.has(unit)));
    const radius = Math.min(5, (data.numUnits > 20000 ? 1 : 1.9) * view.scale ** 0.3) * Math.min(1, 0.5 + size.width / 1000);
    const back = [];
    const front = [];
    for (let unit = 0; unit < data.numUnits; unit++) {
      const [left, top] = [toX(unit), toY(unit)];
      if (!(left > -9 && left < size.width + 9 && top > -9 && top < size.height + 9)) continue;
      (lit && !lit(unit) ? back : front).push([unit, left, top]);
    }
    context.globalAlpha = lit ? (dark() ? 0.22 : 0.2) : 0.8;
    dots(back, radius);
    if (chosen) {
      context.globalAlpha = 0.22;
      dots(front, 2.2 * radius + 1.5, accent());
    }
    context.globalAlpha = lit ? 1 : 0.8;
    dots(front, lit ? radius + 0.5 : radius);
    context.globalAlpha = 1;
    if (hovered >= 0) ring(hovered, radius + 3);
    if (!chosen) drawLabels(context, labelled, { scale: view.scale, size, matched: matched?.quanta, place: (at) => [size.width / 2 + view.x + at.x * spread(), size.height / 2 + view.y - at.y * spread()] });
    if (loop) outline();
  }

  function dots(points, radius, colour) {
    for (const [unit, left, top] of points) {
      context.fillStyle = colour ?? colours[unit];
      if (radius < 1.5) context.fillRect(left - radius, top - radius, 2 * radius, 2 * radius);
      else {
        context.beginPath();
        context.arc(left, top, radius, 0, 7);
        context.fill();
      }
    }
  }

  function ring(unit, radius) {
    context.strokeStyle = accent();
    context.lineWidth = 1.5;
    context.beginPath();
    context.arc(toX(unit), toY(unit), radius, 0, 7);
    context.stroke();
  }

  function outline() {
    context.strokeStyle = accent();
    context.setLineDash([4, 3]);
    context.beginPath();
    loop.forEach(([left, top], i) => (i ? context.lineTo(left, top) : context.moveTo(left, top)));
    context.closePath();
    context.stroke();
    context.setLineDash([]);
  }

  function zoom(factor, left = size.width / 2, top = size.height / 2) {
    const scale = Math.min(1e6, Math.max(0.8, view.scale * factor));
    const real = scale / view.scale;
    const from = { x: left - size.width / 2, y: top - size.height / 2 };
    view = { scale, x: from.x - (from.x - view.x) * real, y: from.y - (from.y - view.y) * real };
    hide();
    later();
  }
  function reset() {
    view = { scale: 1, x: 0, y: 0 };
    later();
  }
  function setLasso(on) {
    lassoOn = on;
    lassoButton.setAttribute("aria-pressed", String(on));
    canvas.classList.toggle("lasso", on);
  }

  const at = (event) => {
    const { left, top } = canvas.getBoundingClientRect();
    return [event.clientX - left, event.clientY - top];
  };
  function nearest([left, top]) {
    let [best, distance] = [-1, 12 ** 2];
    for (let unit = 0; unit < data.numUnits; unit++) {
      const away = (toX(unit) - left) ** 2 + (toY(unit) - top) ** 2;
      if (away < distance) [best, distance] = [unit, away];
    }
    return best;
  }
  function hover(event) {
    const unit = nearest(at(event));
    if (unit === hovered) return;
    hovered = unit;
    canvas.classList.toggle("over", unit >= 0);
    later();
    if (unit < 0) return hide();
    const { left, top } = canvas.getBoundingClientRect();
    const quantum = data.units.quantum[unit];
    show(canvas, [
      h("p", { class: "tipline" }, quantum < 0 ? "in no quantum" : label(data, quantum), h("span", { class: "quiet" }, `loss ${fixed(data.units.loss[unit])} · cosine ${fixed(data.units.cosine[unit])}`)),
      contextLine(data, unit, { length: 24 }),
    ], { left: left + toX(unit) + 8, top: top + toY(unit) - 6, bottom: top + toY(unit) + 6 });
  }

  const fingers = new Map();
  let moved = 0;
  canvas.addEventListener("pointerdown", (event) => {
    fingers.set(event.pointerId, at(event));
    moved = 0;
    if (lassoOn || event.shiftKey) loop = [at(event)];
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    const now = at(event);
    const last = fingers.get(event.pointerId);
    if (!last) return event.pointerType === "mouse" && hover(event);
    moved += Math.hypot(now[0] - last[0], now[1] - last[1]);
    if (loop) loop.push(now);
    else if (fingers.size === 2) {
      const other = [...fingers].find(([id]) => id !== event.pointerId)[1];
      const apart = (point) => Math.hypot(point[0] - other[0], point[1] - other[1]) || 1;
      zoom(apart(now) / apart(last), other[0], other[1]);
    } else view = { ...view, x: view.x + now[0] - last[0], y: view.y + now[1] - last[1] };
    fingers.set(event.pointerId, now);
    hide();
    later();
  });
  const lift = (event) => {
    if (!fingers.delete(event.pointerId)) return;
    if (loop) {
      const found = loop.length > 3 ? inside(loop, data.numUnits, toX, toY) : [];
      table.replaceChildren(...selectionTable(data, found, () => table.replaceChildren()));
      loop = null;
      setLasso(false);
    } else if (moved < 4 && event.type === "pointerup") {
      const unit = nearest(at(event));
      if (unit >= 0 && data.units.quantum[unit] >= 0) go({ quantum: data.units.quantum[unit], unit: null });
    }
    later();
  };
  canvas.addEventListener("pointerup", lift);
  canvas.addEventListener("pointercancel", lift);
  canvas.addEventListener("pointerleave", () => { hovered = -1; hide(); later(); });
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0016)), ...at(event));
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] }[event.key];
    if (event.key === "+" || event.key === "=") zoom(1.4);
    else if (event.key === "-") zoom(1 / 1.4);
    else if (event.key === "0") reset();
    else if (step) view = { ...view, x: view.x + step[0], y: view.y + step[1] };
    else return;
    event.preventDefault();
    later();
  });
  new ResizeObserver(([entry]) => {
    const { width, height } = entry.contentRect;
    if (!width || !height) return;
    size = { width, height };
    const ratio = devicePixelRatio || 1;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    draw();
  }).observe(frame);
  const explainColours = () => {
    const swatch = h("span", { class: "ramp", style: { background: `linear-gradient(90deg, ${[0, 0.25, 0.5, 0.75, 1].map(ramp).join(", ")})` } });
    legend.replaceChildren(...(state.colour === "quantum" ? ["colours: the ten most used"] : ["0", swatch, state.colour === "loss" ? `${fixed(highest.loss)} nats` : "1"]));
  };
  onTheme(() => { recolour(); explainColours(); later(); });

  return {
    element,
    update(now, before) {
      choice.value = now.colour;
      if (!colours.length || now.colour !== before.colour) recolour();
      if (now.search !== before.search || matched === null) matched = search(now.search);
      explainColours();
      later();
    },
  };
}

// Positions centred on the middle of their range, the larger side from -1 to 1, as doubles.
function centred({ x, y }) {
  const known = (column) => [...column].filter((value) => !missing(value));
  const bounds = [x, y].map((column) => known(column).reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]));
  const half = Math.max(...bounds.map(([low, high]) => (high - low) / 2)) || 1;
  const place = (column, [low, high]) => Float64Array.from(column, (value) => (value - (low + high) / 2) / half);
  return { x: place(x, bounds[0]), y: place(y, bounds[1]) };
}
