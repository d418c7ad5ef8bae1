// The controls of labstudio.AttentionExplorer, and how everything is put together.

function fields(view) {
  const { model } = view;
  const text = field(view, "text", "Text", h("textarea", { rows: 2, dir: "auto" }));
  const again = h("button", { type: "button", onclick: () => model.send({ do: "read" }) }, "Read again");
  const buttons = h("div", { class: "lk-buttons" }, again);
  const box = h("div", { class: "la-fields" }, h("div", { class: "lk-fields" }, modelField(view), text), buttons);
  view.on(["model_names"], () => { box.hidden = !model.get("model_names").length; });
  return box;
}

// All heads, each a small picture; the order is the layers' or that of a score.
function headsPanel(view, state) {
  const { model } = view;
  const order = h("select", { id: `${view.id}-order` });
  const list = h("div", { class: "la-heads", role: "listbox", "aria-label": "Heads" });
  const layer = (at) => Math.floor(at / state.heads);
  const scoreOf = (name, at) => state.scores[name]?.[layer(at)]?.[at % state.heads] ?? null;
  const label = (at) => {
    const names = order.value ? [order.value] : PATTERNS.filter((name) => scoreOf(name, at) >= 0.5);
    const name = names.sort((a, b) => scoreOf(b, at) - scoreOf(a, at))[0];
    const value = name && scoreOf(name, at);
    return name ? `${name} ${value === null ? "–" : value.toFixed(2)}` : "";
  };
  const indexOf = (option) => [...list.children].indexOf(option);
  const choose = (place) => {
    const option = list.children[place];
    const at = Number(option.dataset.at);
    model.set("layer", layer(at));
    model.set("head", at % state.heads);
    model.save_changes();
    option.focus();
  };
  const current = () => indexOf(list.querySelector("[aria-selected=true]"));
  listKeys(list, () => state.heads, current, choose);
  list.addEventListener("click", (event) => {
    const option = event.target.closest("[role=option]");
    if (option) choose(indexOf(option));
  });
  const mark = () => {
    const chosen = model.get("layer") * state.heads + model.get("head");
    for (const option of list.children) selectOption(option, Number(option.dataset.at) === chosen);
  };
  const arrange = () => {
    const count = (state.layers ?? 0) * (state.heads ?? 0);
    const tight = state.heads > 6;
    const places = Array.from({ length: count }, (_, at) => at);
    if (order.value) places.sort((a, b) => (scoreOf(order.value, b) ?? -1) - (scoreOf(order.value, a) ?? -1) || a - b);
    const options = new Map([...list.children].map((option) => [Number(option.dataset.at), option]));
    list.replaceChildren(...places.map((at) => {
      const option = options.get(at) ?? h("div", { role: "option", "data-at": at, tabindex: "-1" },
        h("canvas"), h("span", { class: "la-name" }), h("span", { class: "la-score" }));
      const name = `layer ${layer(at)}, head ${at % state.heads}`;
      const [, caption, note] = option.children;
      caption.textContent = tight ? `L${layer(at)} H${at % state.heads}` : name.replaceAll(/ (?=\d)/g, "\u00a0");
      note.textContent = tight ? order.value && label(at).slice(order.value.length) : label(at);
      option.setAttribute("aria-label", [name, label(at)].filter(Boolean).join(", "));
      option.title = option.getAttribute("aria-label");
      return option;
    }));
    list.style.setProperty("--la-heads", state.heads);
    list.classList.toggle("la-tight", tight);
    mark();
  };
  const draw = () => {
    const bytes = dataBytes(state.weights ?? new DataView(new ArrayBuffer(0)));
    const size = state.seq ** 2;
    for (const option of list.children) {
      const start = Number(option.dataset.at) * size;
      paint(option.firstChild, state.seq, (cell) => Math.round(Math.sqrt(255 * bytes[start + cell])), state.causal);
      option.firstChild.classList.toggle("la-pixels", state.seq < 40);
    }
  };
  const box = h("div", { class: "la-panel" }, h("h4", {}, "All heads"),
    h("div", { class: "lk-field" }, h("label", { for: order.id }, "Order"), order), list);
  order.addEventListener("change", arrange);
  state.onPictures.push(() => {
    const names = Object.keys(state.scores ?? {});
    const kept = order.value;
    order.replaceChildren(h("option", { value: "" }, "layer by layer"),
      ...names.map((name) => h("option", { value: name }, `${name}, highest first`)));
    order.value = names.includes(kept) ? kept : "";
    arrange();
    draw();
    box.hidden = !(state.layers * state.heads > 1);
  });
  view.on(["layer", "head"], mark);
  return box;
}

// One of several, as a group of radio buttons: arrow keys step through it.
function choice(view, trait, legend, entries) {
  const { model } = view;
  const inputs = entries.map(([value]) => h("input", { type: "radio", name: `${view.id}-${trait}`, value }));
  const labels = entries.map(([, label], at) => h("label", {}, inputs[at], label));
  for (const input of inputs) {
    input.addEventListener("change", () => view.set(trait, input.value));
  }
  view.on([trait], () => inputs.forEach((input) => { input.checked = input.value === model.get(trait); }));
  return h("fieldset", { class: "la-choice" }, h("legend", {}, legend), ...labels);
}

function toggle(label, change) {
  const input = h("input", { type: "checkbox" });
  input.addEventListener("change", () => change(input.checked));
  return [input, h("label", { class: "la-toggle" }, input, label)];
}

// The tokens in a line. The one looked at is marked; the others are shaded by what it gives them, or gets.
function tokenLine(view, state) {
  const list = h("div", { class: "la-tokens", role: "listbox", "aria-label": "Tokens" });
  const indexOf = (event) => [...list.children].indexOf(event.target.closest("[role=option]"));
  const choose = (token) => {
    state.pin({ token });
    list.children[token].focus();
  };
  listKeys(list, () => 1, () => state.token, choose);
  list.addEventListener("click", (event) => indexOf(event) >= 0 && choose(indexOf(event)));
  list.addEventListener("mouseover", (event) => {
    const token = indexOf(event);
    if (token >= 0) state.hover({ token, key: null, incoming: state.incoming });
  });
  list.addEventListener("mouseleave", () => state.hover(null));
  state.onPictures.push(() => {
    list.replaceChildren(...(state.labels ?? []).map((label, token) =>
      h("span", { role: "option", tabindex: "-1", "aria-label": `${token}: ${blanks(label)}` },
        h("bdi", {}, blanks(label)))));
  });
  state.listeners.push(() => {
    const { token, incoming } = state.now();
    for (let other = 0; other < state.seq; other += 1) {
      const [row, column] = incoming ? [other, token] : [token, other];
      const option = list.children[other];
      const level = state.hidden(row, column) ? 0 : state.level(state.value(row, column));
      const shade = (Math.round(20 * level) / 20).toFixed(2); // few shades: few that change from token to token
      if (option.dataset.shade !== shade) {
        option.dataset.shade = shade;
        option.style.setProperty("--la-level", shade);
      }
      option.classList.toggle("la-now", other === token);
      if ((option.getAttribute("aria-selected") === "true") !== (other === state.token)
        || !option.hasAttribute("aria-selected")) selectOption(option, other === state.token);
    }
  });
  return list;
}

// In words: what the token looked at sees, and where a cell is looked at, its number in every step.
function details(view, state) {
  const line = h("p");
  const cell = h("p", { class: "lk-small" });
  const { name } = state;
  state.listeners.push(() => {
    const { token, key, incoming } = state.now();
    const { step } = state;
    const others = state.others();
    const parts = others.slice(0, STRONGEST).flatMap(([other, value], at) =>
      [at ? ", " : " ", h("span", { class: "la-part" }, name(other), ` ${number(value, step)}`)]);
    const rest = others.length - STRONGEST;
    line.replaceChildren(name(token), ` ${incoming ? step.from : step.verb}`, ...parts,
      rest > 0 ? `, and ${rest} more.` : ".");
    if (key === null) {
      cell.textContent = state.view === "matrix" ? "Point at a cell of the matrix for its number in every step." : "";
    } else {
      const numbers = STEPS.map((each, at) => `${each.button.slice(2).toLowerCase()} `
        + number(state.matrices[at][token * state.seq + key], each));
      cell.replaceChildren(name(token), " looks at ", name(key), `: ${numbers.join(", ")}`);
    }
  });
  return h("div", { class: "la-details", role: "status", id: `${view.id}-details` }, line, cell);
}

function render({ model, el }) {
  const view = newView(model);
  const state = newState(view);
  const title = h("h4");
  const scores = h("p", { class: "lk-small" });
  const formula = h("p", { class: "la-formula" });
  const leak = h("p", { class: "la-leak" }, LEAK);
  const legend = h("p", { class: "lk-small" });
  const [mask, maskLabel] = toggle("Mask: hide later tokens", (checked) => view.set("causal", checked));
  const [, incomingLabel] = toggle("Who looks at it, instead of what it looks at", (incoming) =>
    state.pin({ token: state.token, incoming }));
  const pictures = { matrix: matrixView, arcs: arcsView, table: tableView };
  const drawn = Object.entries(pictures).map(([name, make]) => [name, make(view, state)]);
  const panel = h("div", { class: "la-panel la-chosen" }, title, scores,
    choice(view, "step", "Step", STEPS.map(({ name, button }) => [name, button])), formula,
    h("div", { class: "la-toggles" }, maskLabel, incomingLabel), leak,
    tokenLine(view, state), details(view, state),
    choice(view, "view", "View", Object.entries(VIEWS)), legend, ...drawn.map(([, { node }]) => node));
  const root = h("section", { class: "labkit-widget labkit-attention", "aria-label": "Attention explorer" },
    fields(view), messages(view, ["notice"], () => model.get("notice")),
    h("div", { class: "la-columns" }, headsPanel(view, state), panel));
  view.on(["causal"], () => { mask.checked = Boolean(model.get("causal")); });
  state.onHead.push(() => {
    title.textContent = headName(state);
    scores.textContent = Object.entries(state.scores).map(([name, values]) => {
      const value = values[state.layer][state.head];
      const unit = { entropy: " bits", distance: " tokens" }[name] ?? "";
      return `${name} ${value === null ? "–" : value.toFixed(2) + unit}`;
    }).join(" · ");
    formula.textContent = state.step.says(state.headDim);
    leak.hidden = state.causal;
    legend.replaceChildren(...scaleLegend(state));
    for (const [name, { node, draw }] of drawn) {
      node.hidden = name !== state.view;
      if (!node.hidden) draw();
    }
    state.moved();
  });
  state.start();
  el.append(root);
  return () => view.close();
}

export default { render };
