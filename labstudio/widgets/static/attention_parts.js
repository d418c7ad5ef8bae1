// The browser's side of labstudio.AttentionExplorer. Python computes; this file draws what the traits say. What the
// pointer and the arrow keys look at stays here. Text from models and readers enters the page as text nodes only.

const MINUS = "−";
const STEPS = [
  { name: "raw", button: "1 Raw scores", verb: "scores highest with", from: "is scored highest by",
    says: (dim) => `q·k: multiply query and key feature by feature (head_dim = ${dim}) and add up.` },
  { name: "scaled", button: "2 Scaled", verb: "scores highest with", from: "is scored highest by",
    says: (dim) => `q·k / √head_dim = q·k / √${dim} = q·k / ${Number(Math.sqrt(dim).toFixed(3))}: `
      + "so that wide heads do not score higher than narrow ones." },
  { name: "masked", button: "3 Masked", verb: "scores highest with", from: "is scored highest by",
    says: () => `Scores of tokens that come later become ${MINUS}∞: a token sees itself and what stands before it.` },
  { name: "weights", button: "4 Softmax", verb: "attends to", from: "is attended to by",
    says: () => "Softmax: e to the power of each score, divided by the sum over the row. Each row adds up to 1." },
];
const LEAK = "The mask is off: the same queries and keys, with every token in sight. To learn to predict the next "
  + "token like this would be to copy it: the future leaks.";
const VIEWS = { matrix: "Matrix", arcs: "Arcs", table: "Table" };
const PATTERNS = ["first token", "previous token", "induction"];
const CIVIDIS = ["00224e", "123570", "3b496c", "575d6d", "707173", "8a8678", "a59c74", "c3b369", "e1cc55", "fee838"]
  .map((hex) => [0, 2, 4].map((at) => Number.parseInt(hex.slice(at, at + 2), 16)));
const NUMBERED = 10; // tokens up to which every cell has room for its number
const STRONGEST = 5;
const LINES = 8; // of each token, drawn while no token is looked at

// 256 colours from dark to light, as red, green, blue.
const COLOUR = Array.from({ length: 256 }, (_, number) => {
  const place = (number / 255) * (CIVIDIS.length - 1);
  const low = Math.min(Math.floor(place), CIVIDIS.length - 2);
  return [0, 1, 2].map((c) => CIVIDIS[low][c] + (place - low) * (CIVIDIS[low + 1][c] - CIVIDIS[low][c]));
});

const dataBytes = (data) => new Uint8Array(data.buffer, data.byteOffset, data.byteLength);

function dataFloats(data) {
  return new Float32Array(data.buffer.slice(data.byteOffset, data.byteOffset + data.byteLength)); // aligned
}

function score(value) {
  if (value === -Infinity) return `${MINUS}∞`;
  const text = Math.abs(value).toFixed(2);
  return value < 0 && Number(text) ? MINUS + text : text;
}

const number = (value, step) => (step.name === "weights" ? probability(value) : score(value));
const capital = (text) => text[0].toUpperCase() + text.slice(1);

// A matrix as an image of one pixel a cell. What is hidden stays transparent.
function paint(canvas, seq, level, hidden) {
  if (canvas.width !== seq) [canvas.width, canvas.height] = [seq, seq];
  const context = canvas.getContext("2d");
  const image = context.createImageData(seq, seq);
  for (let row = 0; row < seq; row += 1) {
    for (let column = 0; column < seq; column += 1) {
      if (hidden && column > row) continue;
      const cell = row * seq + column;
      image.data.set(COLOUR[level(cell)], 4 * cell);
      image.data[4 * cell + 3] = 255;
    }
  }
  context.putImageData(image, 0, 0);
}

// What is shown: the traits, unpacked once, and what the reader looks at.
function newState(view) {
  const { model } = view;
  const state = { token: 0, key: null, incoming: false, over: null, step: STEPS[3], view: "matrix" };
  Object.assign(state, { onPictures: [], onHead: [], listeners: [] });
  const limits = (values) => {
    let [low, high] = [Infinity, -Infinity];
    for (const value of values) {
      if (value !== -Infinity) [low, high] = [Math.min(low, value), Math.max(high, value)];
    }
    return low < high ? [low, high] : [low, low + 1];
  };
  const unpackPictures = (pictures) => {
    const same = JSON.stringify(state.labels) === JSON.stringify(pictures.labels);
    Object.assign(state, pictures);
    state.seq = state.labels?.length ?? 0;
    if (!same) Object.assign(state, { token: Math.max(0, state.seq - 1), key: null, over: null });
  };
  const unpackHead = ({ layer, head, head_dim: headDim, matrices }) => {
    if (!matrices) return;
    const all = dataFloats(matrices);
    const size = state.seq ** 2;
    state.matrices = STEPS.map((_, at) => all.subarray(at * size, (at + 1) * size));
    state.values = state.matrices[STEPS.indexOf(state.step)];
    const [low, high] = state.step.name === "weights" ? [0, 1] : limits(state.values);
    const hides = state.causal && (state.step.name === "masked" || state.step.name === "weights");
    Object.assign(state, { layer, head, headDim, low, high, hides });
  };
  let known = [];
  // The traits of one message change in any order: whichever comes first, all are unpacked and then drawn.
  const update = () => {
    const now = ["pictures", "enlarged", "step", "view"].map((trait) => model.get(trait));
    if (now.every((value, at) => value === known[at])) return;
    const anew = now[0] !== known[0];
    known = now;
    if (anew) unpackPictures(now[0]);
    state.step = STEPS.find(({ name }) => name === now[2]) ?? state.step;
    state.view = now[3] in VIEWS ? now[3] : state.view;
    unpackHead(now[1]);
    if (anew) state.onPictures.forEach((listener) => listener());
    if (state.values) state.onHead.forEach((listener) => listener());
  };
  state.start = () => view.on(["pictures", "enlarged", "step", "view"], update);
  state.value = (row, column) => state.values[row * state.seq + column];
  state.hidden = (row, column) => state.hides && column > row;
  // How light or thick something is drawn, 0 to 1. Of weights the square root: many small ones can be told apart.
  state.level = (value) => {
    const level = Math.max(0, (value - state.low) / (state.high - state.low));
    return state.step.name === "weights" ? Math.sqrt(level) : level;
  };
  state.name = (token) => h("span", { class: "la-token" }, `${token}:`, h("bdi", {}, blanks(state.labels[token])));
  state.now = () => state.over ?? state;
  // The other tokens of the one that is looked at, with their numbers; the largest first.
  state.others = () => {
    const { token, incoming } = state.now();
    const list = [];
    for (let other = 0; other < state.seq; other += 1) {
      const [row, column] = incoming ? [other, token] : [token, other];
      if (!state.hidden(row, column)) list.push([other, state.value(row, column)]);
    }
    return list.sort((a, b) => b[1] - a[1]);
  };
  state.moved = () => state.values && state.listeners.forEach((listener) => listener());
  state.hover = (over) => {
    const old = state.over;
    if (over && old && ["token", "key", "incoming"].every((name) => over[name] === old[name])) return;
    state.over = over;
    if (over || old) state.moved();
  };
  state.pin = (change) => {
    Object.assign(state, { key: null }, change, { over: null });
    state.moved();
  };
  return state;
}

// Moves through a listbox: arrow keys, Home, End; `columns` apart for up and down.
function listKeys(list, columns, current, choose) {
  list.addEventListener("keydown", (event) => {
    const down = columns();
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: down, ArrowUp: -down, Home: -Infinity, End: Infinity }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const last = list.children.length - 1;
    const next = current() + step;
    if (Math.abs(step) !== Infinity && (next < 0 || next > last)) return;
    choose(Math.min(Math.max(next, 0), last));
  });
}

function selectOption(option, selected) {
  option.setAttribute("aria-selected", String(selected));
  option.setAttribute("tabindex", selected ? "0" : "-1");
}
