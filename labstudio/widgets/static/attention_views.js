// The three pictures of the enlarged head: matrix, arcs, table.  Each is a node and how to draw it anew.

const headName = (state) => `Layer ${state.layer}, head ${state.head}`;

// What the colours, hatching and lines mean.
function scaleLegend(state) {
  if (state.view === "table") return [];
  const softmax = state.step.name === "weights";
  const ends = softmax ? ["0", "1"] : [state.low, state.high].map(score);
  const hidden = state.hides ? " Hatched: hidden by the mask." : "";
  if (state.view === "arcs") {
    return [`Left looks, right is looked at. The thicker a line, the more: from ${ends[0]} to ${ends[1]}. `
      + `Of each token the ${LINES} thickest; all of a token that is pointed at.`];
  }
  return ["Rows look, columns are looked at. ", ends[0], h("span", { class: "la-scale", "aria-hidden": "true" }),
    `${ends[1]}.${softmax ? " The middle is 0.25 (by square root)." : ""}${hidden}`];
}

// Tokens along a side; of many only every second or fourth, where there is little room half of them, and the one looked
// at always.
function sideLabels(state, side) {
  const every = state.seq <= 32 ? 1 : state.seq <= 64 ? 2 : 4;
  return state.labels.map((label, token) => {
    const node = state.name(token);
    node.classList.toggle("la-rare", token % every > 0);
    node.classList.toggle("la-rarer", state.seq > 16 && token % (2 * every) > 0);
    node.style.setProperty(side, `${(100 * (token + 0.5)) / state.seq}%`);
    return node;
  });
}

function matrixView(view, state) {
  const [rows, columns, numbers] = ["la-rows", "la-columns-names", "la-numbers"].map((name) => h("div", { class: name }));
  const canvas = h("canvas", { class: "la-pixels" });
  const marks = ["la-row", "la-cell"].map((name) => h("div", { class: `la-mark ${name}` }));
  const plot = h("div", { class: "la-plot" }, canvas, numbers, ...marks);
  const node = h("div", {
    class: "la-matrix", tabindex: "0", role: "application", "aria-roledescription": "matrix",
    "aria-describedby": `${view.id}-details`,
  }, h("div", { class: "la-frame", "aria-hidden": "true" }, rows, plot, columns));
  const clamp = (value) => Math.min(Math.max(value, 0), state.seq - 1);
  const cellAt = (event) => {
    const box = plot.getBoundingClientRect();
    const key = clamp(Math.floor(((event.clientX - box.left) / box.width) * state.seq));
    return { token: clamp(Math.floor(((event.clientY - box.top) / box.height) * state.seq)), key };
  };
  plot.addEventListener("pointermove", (event) => state.hover({ ...cellAt(event), incoming: state.incoming }));
  plot.addEventListener("pointerleave", () => state.hover(null));
  plot.addEventListener("click", (event) => state.pin(cellAt(event)));
  node.addEventListener("keydown", (event) => {
    const [down, right] = { ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1],
      Home: [0, -Infinity], End: [0, Infinity] }[event.key] ?? [0, 0];
    if (!down && !right) return;
    event.preventDefault();
    state.pin({ token: clamp(state.token + down), key: clamp((state.key ?? state.token) + right) });
  });
  node.addEventListener("focus", () => state.pin({ key: state.key ?? state.token }));
  const draw = () => {
    node.setAttribute("aria-label", `${headName(state)}, ${state.step.button.slice(2)}: arrow keys go from cell to cell`);
    rows.replaceChildren(...sideLabels(state, "top"));
    columns.replaceChildren(...sideLabels(state, "left"));
    paint(canvas, state.seq, (cell) => Math.round(255 * state.level(state.values[cell])), state.hides);
    node.style.setProperty("--la-seq", state.seq);
    const cells = state.seq > NUMBERED ? [] : [...state.values].map((value, cell) => {
      const hidden = state.hidden(Math.floor(cell / state.seq), cell % state.seq);
      const shade = hidden ? "la-hidden" : state.level(value) > 0.5 ? "la-light" : "la-dark";
      return h("span", { class: shade }, number(value, state.step));
    });
    numbers.classList.toggle("la-dense", state.seq > 5);
    numbers.replaceChildren(...cells);
  };
  let named = [];
  state.listeners.push(() => {
    if (state.view !== "matrix") return;
    const { token, key, incoming } = state.now();
    const [row, cell] = marks;
    const place = (at, whole) => (whole ? ["0%", "100%"] : [`${(100 * at) / state.seq}%`, `${100 / state.seq}%`]);
    [row.style.top, row.style.height] = place(token, incoming);
    [row.style.left, row.style.width] = place(token, !incoming);
    cell.hidden = key === null;
    [cell.style.top, cell.style.height] = place(token);
    [cell.style.left, cell.style.width] = place(key ?? 0);
    named.forEach((label) => label.classList.remove("la-now"));
    named = [incoming && key === null ? null : rows.children[token],
      key === null ? incoming && columns.children[token] : columns.children[key]].filter(Boolean);
    named.forEach((label) => label.classList.add("la-now"));
  });
  return { node, draw };
}

function arcsView(view, state) {
  const [left, right] = ["la-left", "la-right"].map((name) => h("div", { class: name }));
  const [all, some] = [svg("g", { class: "la-all" }), svg("g", { class: "la-some" })];
  const picture = svg("svg", {});
  picture.append(all, some);
  const node = h("div", { class: "la-arcs", "aria-hidden": "true" }, left, picture, right);
  for (const [side, incoming] of [[left, false], [right, true]]) {
    side.addEventListener("mouseover", (event) => {
      const token = [...side.children].indexOf(event.target.closest("span"));
      if (token >= 0) state.hover({ token, key: null, incoming });
    });
    side.addEventListener("mouseleave", () => state.hover(null));
    side.addEventListener("click", (event) => {
      const token = [...side.children].indexOf(event.target.closest("span"));
      if (token >= 0) state.pin({ token });
    });
  }
  const at = (token) => `${(100 * (token + 0.5)) / state.seq}%`;
  const line = (row, column) => {
    const level = state.level(state.value(row, column));
    return svg("line", {
      x1: "0", x2: "100%", y1: at(row), y2: at(column),
      "stroke-width": (0.5 + 4 * level).toFixed(2), "stroke-opacity": (0.15 + 0.85 * level).toFixed(3),
    });
  };
  const draw = () => {
    for (const side of [left, right]) {
      side.replaceChildren(...state.labels.map((_, token) => state.name(token)));
    }
    node.style.setProperty("--la-seq", state.seq);
    node.classList.toggle("la-many", state.seq > 24);
    const lines = [];
    for (let row = 0; row < state.seq; row += 1) {
      const columns = [...Array(state.seq).keys()].filter((column) => !state.hidden(row, column)
        && state.values[row * state.seq + column] !== -Infinity);
      columns.sort((a, b) => state.value(row, b) - state.value(row, a));
      lines.push(...columns.slice(0, LINES).map((column) => line(row, column)));
    }
    all.replaceChildren(...lines);
  };
  let named;
  state.listeners.push(() => {
    if (state.view !== "arcs") return;
    const { token, incoming } = state.now();
    some.replaceChildren(...state.others().map(([other]) => (incoming ? line(other, token) : line(token, other))));
    named?.classList.remove("la-now");
    named = (incoming ? right : left).children[token];
    named?.classList.add("la-now");
  });
  return { node, draw };
}

function tableView(view, state) {
  const caption = h("caption");
  const [head, body] = [h("thead"), h("tbody")];
  const node = h("div", { class: "la-table", role: "region", tabindex: "0" }, h("table", {}, caption, head, body));
  const draw = () => {
    const name = `${headName(state)}, step ${state.step.button}`;
    node.setAttribute("aria-label", `${name}, as a table`);
    caption.textContent = `${name}. Rows look, columns are looked at.`;
    const heading = (token, scope) => h("th", { scope }, state.name(token));
    const tokens = [...Array(state.seq).keys()];
    head.replaceChildren(h("tr", {}, h("td"), ...tokens.map((token) => heading(token, "col"))));
    body.replaceChildren(...tokens.map((row) => h("tr", {}, heading(row, "row"), ...tokens.map((column) => {
      const value = state.value(row, column);
      return h("td", { "data-value": value }, number(value, state.step));
    }))));
  };
  return { node, draw };
}
