// The browser's side of labstudio.widgets.RunMonitor and LiveRun. Python reads the run and decides what can be done; this
// file draws the traits and sends back which button was pressed. Text from runs enters the page as text nodes only.

const STATES = {
  ready: "ready to start", offered: "interrupted", training: "training", paused: "paused", stopped: "stopped",
  finished: "finished", failed: "ended by an error", busy: "written by another training",
};
const HEIGHT = 190; // of a chart, in pixels
const EDGE = { left: 52, right: 26, top: 8, bottom: 34 };

function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const count = (value) => Math.round(value).toLocaleString("en");

// Few digits, as a person would write them.
function short(value) {
  if (value === undefined || value === null) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-3) return value.toExponential(2).replace(/\.?0+e/, "e");
  return size >= 1000 ? count(value) : String(Number(value.toPrecision(4)));
}

function duration(seconds) {
  if (seconds === undefined || seconds === null) return "–";
  const all = Math.round(seconds);
  if (all < 60) return `${all} s`;
  if (all < 3600) return `${Math.floor(all / 60)} min ${all % 60} s`;
  return `${Math.floor(all / 3600)} h ${Math.floor((all % 3600) / 60)} min`;
}

// Round values between low and high, at most about `most` of them.
function linearTicks(low, high, most = 5) {
  const raw = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * ([1, 2, 5, 10].find((each) => each * power >= raw) ?? 10);
  const ticks = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n += 1) {
    ticks.push(Number((n * step).toPrecision(12)));
  }
  return ticks;
}

// 1, 2 and 5 times the powers of ten; only the powers where those are too many, others where they are too few.
function logTicks(low, high) {
  const ticks = [];
  const wide = Math.log10(high / low) > 2.2;
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
    for (const each of wide ? [1] : [1, 2, 5]) {
      const tick = each * 10 ** power;
      if (tick >= low * 0.999 && tick <= high * 1.001) ticks.push(tick);
    }
  }
  return ticks.length < 3 ? linearTicks(low, high, 4) : ticks;
}

// Where values lie between two ends, with room above and below; a flat curve gets room too.
function scale(values, log, from, to) {
  let [low, high] = [Math.min(...values), Math.max(...values)];
  const turn = log ? Math.log10 : (value) => value;
  if (log) [low, high] = [low / 1.1, high * 1.1];
  else {
    const room = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
    [low, high] = [low >= 0 ? Math.max(0, low - room) : low - room, high + room];
  }
  const part = (to - from) / (turn(high) - turn(low));
  const ticks = log ? logTicks(low, high) : linearTicks(low, high);
  return { ticks, at: (value) => from + (turn(value) - turn(low)) * part };
}

// One chart: title, unit, logarithmic or not, and lines of [step, value] points, drawn as wide as there is room.
function chart(title, unit, log) {
  const picture = svg("svg", { role: "img", "aria-label": title, height: HEIGHT });
  const legend = h("p", { class: "lr-legend" });
  const node = h("figure", { class: "lr-chart", "data-chart": title }, h("figcaption", {}, title,
    h("span", { class: "lr-unit" }, ` (${unit}${log ? ", logarithmic" : ""})`)), picture, legend);
  let shown = { lines: [], total: 1 };
  const drawn = (points) => points.filter(([, y]) => y !== null && y !== undefined && (!log || y > 0));
  const draw = () => {
    const width = Math.max(160, node.clientWidth);
    picture.setAttribute("width", width);
    const lines = shown.lines.map((line) => ({ ...line, points: drawn(line.points) }));
    const values = lines.flatMap((line) => line.points.map(([, y]) => y));
    const right = width - EDGE.right;
    const bottom = HEIGHT - EDGE.bottom;
    const x = (step) => EDGE.left + ((right - EDGE.left) * step) / Math.max(1, shown.total);
    const y = values.length ? scale(values, log, bottom, EDGE.top) : null;
    picture.replaceChildren(axes(x, y, shown.total, right, bottom), ...lines.map((line) => curve(line, x, y)));
    const last = lines.filter((line) => line.points.length).map((line) => {
      const [step, value] = line.points.at(-1);
      return `${line.name} ${short(value)} at step ${count(step)}`;
    });
    picture.setAttribute("aria-label", `${title}: ${last.join(", ") || "nothing yet"}`);
  };
  const put = (lines, total) => {
    shown = { lines, total };
    if (legend.childElementCount !== (lines.length > 1 ? lines.length : 0)) {
      legend.replaceChildren(...(lines.length > 1 ? lines.map(legendEntry) : []));
    }
    draw();
  };
  return { node, draw, put };
}

function axes(x, y, total, right, bottom) {
  const group = svg("g", { class: "lr-axes" });
  group.append(svg("path", { d: `M${EDGE.left} ${EDGE.top}V${bottom}H${right}` }));
  for (const tick of linearTicks(0, Math.max(1, total), 4)) {
    const at = x(tick);
    group.append(svg("path", { d: `M${at} ${bottom}v4` }),
      svg("text", { x: at, y: bottom + 15, "text-anchor": "middle" }, count(tick)));
  }
  group.append(svg("text", { x: (EDGE.left + right) / 2, y: bottom + 30, "text-anchor": "middle" }, "step"));
  for (const tick of y?.ticks ?? []) {
    const at = y.at(tick);
    group.append(svg("path", { d: `M${EDGE.left} ${at}H${right}`, class: "lr-grid" }),
      svg("text", { x: EDGE.left - 5, y: at + 4, "text-anchor": "end" }, short(tick)));
  }
  return group;
}

function curve(line, x, y) {
  const places = line.points.map(([step, value]) => `${x(step).toFixed(1)} ${y.at(value).toFixed(1)}`);
  const group = svg("g", { class: `lr-curve lr-${line.style}`, "data-points": places.length });
  if (!places.length) return group;
  group.append(svg("path", { d: `M${places.join("L")}` }));
  if (line.style === "dashed" || places.length === 1) {
    for (const [step, value] of line.points) {
      group.append(svg("circle", { cx: x(step).toFixed(1), cy: y.at(value).toFixed(1), r: 2.5 }));
    }
  }
  return group;
}

function legendEntry(line) {
  const key = svg("svg", { width: 30, height: 10, "aria-hidden": "true", class: `lr-curve lr-${line.style}` },
    svg("path", { d: "M1 5H29" }));
  if (line.style === "dashed") key.append(svg("circle", { cx: 15, cy: 5, r: 2.5 }));
  return h("span", { class: "lr-key" }, key, line.name);
}

function charts(view) {
  const { model } = view;
  const loss = chart("Loss", "nats per token", false);
  const perplexity = chart("Perplexity", "equally likely tokens", true);
  const rate = chart("Learning rate", "per step", false);
  const norm = chart("Gradient norm", "before clipping", true);
  const all = [loss, perplexity, rate, norm];
  view.on(["curves", "evaluations", "total_steps"], () => {
    const curves = model.get("curves");
    const steps = curves.step ?? [];
    const over = (values = []) => steps.map((step, place) => [step, values[place]]);
    const held = model.get("evaluations");
    const total = Math.max(model.get("total_steps"), steps.at(-1) ?? 0);
    const mean = "training, mean of 20 steps";
    loss.put([
      { name: mean, style: "solid", points: over(curves.loss) },
      { name: "held-out", style: "dashed", points: held.map(([step, value]) => [step, value]) },
    ], total);
    const exponential = curves.loss?.map((each) => (each === null ? null : Math.exp(each)));
    perplexity.put([
      { name: mean, style: "solid", points: over(exponential) },
      { name: "held-out", style: "dashed", points: held.map(([step, , value]) => [step, value]) },
    ], total);
    rate.put([{ name: "learning rate", style: "solid", points: over(curves.learning_rate) }], total);
    norm.put([{ name: "gradient norm", style: "solid", points: over(curves.grad_norm) }], total);
  });
  const observer = new ResizeObserver(() => all.forEach((each) => each.draw()));
  const node = h("div", { class: "lr-charts" }, ...all.map((each) => each.node));
  observer.observe(node);
  view.cleanups.push(() => observer.disconnect());
  return node;
}

function evaluationsTable(view) {
  const body = h("tbody");
  const head = ["Step", "Held-out loss (nats per token)", "Perplexity"].map((each) => h("th", { scope: "col" }, each));
  view.on(["evaluations"], () => {
    const rows = view.model.get("evaluations").map(([step, loss, perplexity]) =>
      h("tr", {}, h("th", { scope: "row" }, count(step)), h("td", {}, short(loss)), h("td", {}, short(perplexity))));
    body.replaceChildren(...rows.reverse());
  });
  return h("details", {}, h("summary", {}, "Evaluations as a table, newest first"),
    h("div", { class: "lr-scroll", tabindex: "0", role: "region", "aria-label": "Evaluations" },
      h("table", {}, h("thead", {}, h("tr", {}, ...head)), body)));
}

function header(view) {
  const { model } = view;
  const name = h("bdi", { class: "lr-name" });
  const state = h("span", { class: "lr-state" });
  const steps = h("span", { class: "lr-steps" });
  const bar = h("progress", { id: `${view.id}-progress` });
  view.on(["name"], () => { name.textContent = model.get("name"); });
  view.on(["state", "steps_done", "total_steps"], () => {
    const [done, total] = [model.get("steps_done"), model.get("total_steps")];
    state.textContent = STATES[model.get("state")] ?? model.get("state");
    steps.textContent = `step ${count(done)} of ${count(total)}`;
    bar.max = Math.max(1, total);
    bar.value = done;
  });
  return h("header", { class: "lr-header" },
    h("div", { class: "lr-line" }, h("strong", {}, "Run ", name), state),
    h("div", { class: "lr-line" }, h("label", { for: bar.id }, "Progress"), bar, steps));
}

const NUMBERS = [
  ["loss", "Training loss", short], ["val_loss", "Held-out loss", short], ["perplexity", "Held-out perplexity", short],
  ["learning_rate", "Learning rate", short], ["grad_norm", "Gradient norm", short],
  ["tokens_per_second", "Tokens per second", short], ["seconds_left", "Time left, about", duration],
];

function numbers(view) {
  const values = Object.fromEntries(NUMBERS.map(([name]) => [name, h("dd", { "data-number": name })]));
  view.on(["latest"], () => {
    const latest = view.model.get("latest");
    for (const [name, , show] of NUMBERS) values[name].textContent = show(latest[name]);
  });
  return h("dl", { class: "lr-numbers" },
    ...NUMBERS.map(([name, label]) => h("div", {}, h("dt", {}, label), values[name])));
}

// What can be done now. A button keeps its place and the focus when it comes to mean something else.
function actions(view) {
  const { model } = view;
  const row = h("div", { class: "lk-buttons" });
  const press = (event) => {
    const node = event.currentTarget;
    if (node.getAttribute("aria-disabled") !== "true") model.send({ do: node.dataset.do });
  };
  view.on(["buttons"], () => {
    const wanted = model.get("buttons");
    while (row.childElementCount > wanted.length) row.lastChild.remove();
    wanted.forEach((each, place) => {
      if (!row.children[place]) row.append(h("button", { type: "button", onclick: press }));
      const node = row.children[place];
      node.textContent = each.label;
      node.dataset.do = each.do;
      node.setAttribute("aria-disabled", String(!each.enabled));
    });
  });
  return h("div", { class: "lr-actions" }, row, rateBox(view));
}

function rateBox(view) {
  const { model } = view;
  const id = `${view.id}-rate`;
  const box = h("input", { type: "number", step: "any", min: 0, id, class: "lr-rate" });
  const node = h("div", { class: "lr-rate-field" }, h("label", { for: id }, "Learning rate times"), box);
  onCommit(box, () => {
    if (typed(box.value) !== model.get("rate")) model.send({ do: "rate", value: typed(box.value) });
  });
  view.on(["rate", "error"], () => {
    const rate = model.get("rate");
    node.hidden = rate === null;
    box.setAttribute("aria-invalid", String(model.get("error").startsWith("Learning rate times")));
    if (model.get("error") || document.activeElement === box) return; // what is wrong stays to be mended
    box.value = String(rate);
  });
  return node;
}

function messages(view) {
  const { model } = view;
  const error = h("p", { role: "alert", class: "lk-error", dir: "auto" });
  const status = h("p", { role: "status", dir: "auto" });
  const put = (node, text) => { if (node.textContent !== text) node.textContent = text; };
  view.on(["error"], () => put(error, model.get("error")));
  view.on(["message"], () => put(status, model.get("message")));
  return h("div", { class: "lk-messages" }, error, status);
}

// The texts that the model wrote on the way; the newest is followed unless the reader went back.
function samples(view) {
  const { model } = view;
  const choice = h("select", { id: `${view.id}-sample` });
  const prompt = h("b");
  const text = h("span");
  const box = h("div", { class: "lr-sample", dir: "auto", tabindex: "0", role: "region", "aria-label": "Sample" },
    prompt, text);
  const button = (label, by) => h("button", { type: "button", onclick: () => show(choice.selectedIndex + by) }, label);
  const [earlier, later] = [button("Earlier", -1), button("Later", 1)];
  const key = (each) => JSON.stringify([each.step, each.asked, each.text]);
  let all = [];
  const show = (number) => {
    const place = Math.min(Math.max(number, 0), all.length - 1);
    choice.selectedIndex = place;
    earlier.setAttribute("aria-disabled", String(place <= 0));
    later.setAttribute("aria-disabled", String(place >= all.length - 1));
    const sample = all[place] ?? { prompt: "", text: "Nothing yet." };
    prompt.textContent = sample.text.startsWith(sample.prompt) ? sample.prompt : "";
    text.textContent = sample.text.slice(prompt.textContent.length);
  };
  choice.addEventListener("change", () => show(choice.selectedIndex));
  view.on(["samples"], () => {
    const before = all;
    const chosen = choice.selectedIndex;
    all = model.get("samples");
    if (before.length === all.length && before.every((each, place) => key(each) === key(all[place]))) {
      if (!all.length) show(0);
      return;
    }
    const names = all.map((each) => `step ${count(each.step)}${each.asked ? ", asked for" : ""}`);
    choice.replaceChildren(...names.map((name, place) => h("option", { value: place }, name)));
    const back = chosen >= 0 && chosen < before.length - 1;
    const same = back ? all.findIndex((each) => key(each) === key(before[chosen])) : -1;
    show(same >= 0 ? same : all.length - 1);
  });
  const label = h("label", { for: choice.id }, "What it wrote at");
  const node = h("div", { class: "lr-samples" }, h("div", { class: "lr-line" }, label, choice, earlier, later), box);
  view.on(["samples", "buttons"], () => {
    node.hidden = !model.get("samples").length && !model.get("buttons").some((each) => each.do === "sample");
  });
  return node;
}

function render({ model, el }) {
  const view = { ...newView(model), cleanups: [] };
  const root = h("section", { class: "labkit-widget labkit-run", "aria-label": "Training run" });
  root.append(header(view), actions(view), messages(view), numbers(view), charts(view), evaluationsTable(view),
    samples(view));
  el.append(root);
  return () => {
    view.cleanups.forEach((each) => each());
    view.close();
  };
}

export default { render };
