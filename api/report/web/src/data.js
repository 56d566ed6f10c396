// Reads the two blocks of the page back into the payload's shape. Columns become typed arrays; a table keeps its
// width in `width`. This is the one module that would change to read from a server instead.

const KINDS = { float32: Float32Array, int32: Int32Array, uint16: Uint16Array };

async function inflate(id) {
  const text = document.getElementById(id).textContent;
  const letters = atob(text);
  const bytes = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i++) bytes[i] = letters.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream);
}

export async function load() {
  if (typeof DecompressionStream === "undefined") throw new Error("this browser lacks DecompressionStream (it came in 2023)");
  const numbers = await (await inflate("numbers")).arrayBuffer();
  const restore = (key, value) => {
    if (!value || !Array.isArray(value.$)) return value;
    const [kind, offset, shape] = value.$;
    const column = new KINDS[kind](numbers, offset, shape.reduce((product, length) => product * length, 1));
    column.width = shape.at(-1);
    column.depth = shape.length > 2 ? shape.at(-2) * shape.at(-1) : shape.at(-1);
    return column;
  };
  return dataset(JSON.parse(await (await inflate("texts")).text(), restore));
}

function dataset(payload) {
  const { windows, units, quanta } = payload;
  const members = quanta.target.map(() => []);
  units.quantum.forEach((quantum, unit) => quantum >= 0 && members[quantum].push(unit));
  for (const list of members) list.sort((a, b) => units.cosine[b] - units.cosine[a]);
  const byUse = quanta.target.map((_, quantum) => quantum).sort((a, b) => quanta.use[b] - quanta.use[a]);
  const tints = new Map((payload.contributions ?? []).map((entry) => [entry.unit, entry.values]));
  const unitsOfWindow = new Map();
  units.window.forEach((window, unit) => {
    if (!unitsOfWindow.has(window)) unitsOfWindow.set(window, []);
    unitsOfWindow.get(window).push(unit);
  });
  return {
    ...payload,
    members,
    byUse,
    rankOf: byUse.reduce((ranks, quantum, rank) => ((ranks[quantum] = rank), ranks), []),
    tints,
    unitsOfWindow,
    numUnits: units.window.length,
    numQuanta: quanta.target.length,
    // Rows of two- and three-dimensional columns.
    row: (table, index) => table.subarray(index * table.depth, (index + 1) * table.depth),
    tokens: (window) =>
      Array.from(windows.token.subarray(windows.start[window], windows.start[window + 1]), (id) => windows.vocabulary[id]),
    source(window, target = 0) {
      const document = payload.documents[windows.document[window]];
      const tokens = this.tokens(window);
      const before = tokens.slice(0, target).join("");
      const line = windows.first_line[window];
      return {
        name: document.name,
        labels: document.labels,
        line: line < 0 ? null : line + (before.match(/\n/g) ?? []).length,
        offset: windows.char_offset[window] + [...before].length,
      };
    },
  };
}
