// The browser's side of labstudio's Dashboard. Python reads the folder and decides what can be done; this file draws
// the traits and sends back what the reader asks for. Text from runs enters the page as text nodes only.

const TABS = [
  { name: "runs", label: "Runs", panel: runsPanel },
  { name: "run", label: "One run", panel: runPanel },
  { name: "start", label: "Start a training", panel: startPanel },
  { name: "try", label: "Try a checkpoint", panel: tryPanel },
];
const RUN_COLUMNS = [
  { name: "run", label: "Run" },
  { name: "parameters", label: "Parameters", show: whole },
  { name: "step", label: "Steps", show: (step, row) => (step === null ? "–" : `${whole(step)} / ${whole(row.total_steps)}`) },
  { name: "val_loss", label: "Held-out loss", show: digits, hint: "nats per token" },
  { name: "perplexity", label: "Perplexity", show: digits },
  { name: "state", label: "State", show: (text) => text },
  { name: "started", label: "Started", show: (text) => text ?? "–" },
];

function ask(view, action, content = {}) {
  view.model.send({ do: action, ...content });
}

// ---- the list ----

function runsPanel(view) {
  const { model } = view;
  const filter = h("input", { type: "search", autocomplete: "off", spellcheck: "false" });
  const found = h("p", { role: "status", class: "lk-small" });
  const empty = h("p", {}, "No runs here yet. Start one under “Start a training”, or in a terminal: ", h("code", {}, "labkit train"));
  const body = h("tbody");
  const heads = RUN_COLUMNS.map((column) => sortHead(column, () => sortBy(column.name)));
  const rows = new Map();
  let order = { name: "started", down: true };
  const sortBy = (name) => {
    order = { name, down: order.name === name ? !order.down : false };
    draw();
  };
  const draw = () => {
    const all = model.get("rows");
    const wanted = filter.value.trim().toLowerCase();
    const shown = all.filter((row) => `${row.run} ${row.state}`.toLowerCase().includes(wanted)).sort(compareBy(order));
    for (const name of [...rows.keys()]) if (!all.some((row) => row.run === name)) rows.delete(name);
    const nodes = shown.map((row) => {
      if (!rows.has(row.run)) rows.set(row.run, runRow(view, row.run));
      return rows.get(row.run)(row);
    });
    if (nodes.length !== body.childElementCount || nodes.some((node, place) => node !== body.children[place])) {
      const focused = document.activeElement;
      body.replaceChildren(...nodes);
      if (body.contains(focused)) focused.focus(); // a row that moved keeps it
    }
    heads.forEach((head, place) => head.mark(RUN_COLUMNS[place].name === order.name ? order.down : null));
    empty.hidden = all.length > 0;
    table.hidden = !all.length;
    const total = all.length === 1 ? "1 run" : `${all.length} runs`;
    put(found, wanted ? `${shown.length} of ${total}` : total);
  };
  const table = h("div", { class: "ld-scroll", tabindex: "0", role: "region", "aria-label": "Runs" },
    h("table", { class: "ld-runs" }, h("caption", { class: "lk-hidden" }, "Runs; the headings sort"),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Compare"), ...heads.map((head) => head.node))), body));
  filter.addEventListener("input", draw);
  view.on(["rows"], draw);
  const folder = h("p", { class: "lk-small" });
  view.on(["folder"], () => folder.replaceChildren("Folder: ", foreign(model.get("folder"))));
  return [h("h2", {}, "Runs"), folder, problem(view, "look"), problem(view, "runs"),
    h("div", { class: "ld-filter" }, labelled(view, "filter", "Show runs whose name or state has", filter), found),
    empty, table, ...comparisonPart(view)];
}

function sortHead(column, onclick) {
  const arrow = h("span", { "aria-hidden": "true" });
  const hint = column.hint ? h("span", { class: "lk-small" }, column.hint) : "";
  const button = h("button", { type: "button", class: "ld-sort", onclick }, column.label, arrow);
  const node = h("th", { scope: "col", "data-column": column.name }, button, hint);
  const mark = (down) => {
    if (down === null) node.removeAttribute("aria-sort");
    else node.setAttribute("aria-sort", down ? "descending" : "ascending");
    put(arrow, down === null ? " ↕" : down ? " ↓" : " ↑");
  };
  return { node, mark };
}

// What is missing comes last, whichever way the others go.
function compareBy({ name, down }) {
  return (one, other) => {
    const [a, b] = [one[name] ?? null, other[name] ?? null];
    if (a === null || b === null) return (a === null) - (b === null);
    const sign = typeof a === "number" ? a - b : String(a).localeCompare(String(b));
    return down ? -sign : sign;
  };
}

// A row that is made once and then only changed, so that focus and ticks stay where they are.
function runRow(view, name) {
  const { model } = view;
  const tick = h("input", { type: "checkbox", "aria-label": `Compare ${name}` });
  tick.addEventListener("change", () => {
    const others = model.get("chosen").filter((each) => each !== name);
    view.set("chosen", tick.checked ? [...others, name] : others);
  });
  const open = h("button", { type: "button", class: "ld-open", onclick: () => ask(view, "open", { run: name }) }, foreign(name));
  const cells = RUN_COLUMNS.slice(1).map((column) => h("td", { "data-column": column.name }));
  const node = h("tr", {}, h("td", {}, tick), h("th", { scope: "row" }, open), ...cells);
  return (row) => {
    tick.checked = model.get("chosen").includes(name);
    cells.forEach((cell, place) => put(cell, RUN_COLUMNS[place + 1].show(row[RUN_COLUMNS[place + 1].name], row)));
    return node;
  };
}

function comparisonPart(view) {
  const node = h("div", { class: "ld-compared" });
  const options = { unit: "nats per token", x: "tokens trained on", legend: false };
  const pictures = [chart(view, "Held-out loss", options), chart(view, "Training loss, mean of 20 steps", options)];
  const charts = h("div", { class: "ld-charts" }, ...pictures.map((each) => each.node));
  view.on(["compared"], () => {
    const { runs, rows, warnings, held_out: heldOut, training } = view.model.get("compared");
    if (!runs) return node.replaceChildren(h("p", {}, "Tick two runs or more to compare them."));
    const notes = warnings.map((text) => h("p", { class: "ld-note", dir: "auto" }, text));
    const table = plainTable("Where they differ, and how they did", ["Setting or result", ...runs.map(foreign)],
      rows.map(([name, ...values]) => [name, ...values.map((value) => foreign(digits(value)))]));
    const lines = [heldOut, training].map((curves) => curves.map((points, number) =>
      ({ name: runs[number], number, points, marks: points.length < 30 })));
    node.replaceChildren(...notes, h("ul", { class: "lk-legend" }, ...lines[1].map(legendEntry)), charts, table);
    const far = Math.max(0, ...lines.flat().flatMap((line) => line.points.map(([x]) => x)));
    pictures.forEach((picture, place) => picture.put(lines[place], far));
  });
  return [h("h3", {}, "Comparison"), node];
}

// ---- one run ----

function runPanel(view) {
  const { model } = view;
  const none = h("p", {}, "Choose a run in the list under “Runs”.");
  const details = h("div");
  const monitor = slot(view, "monitor");
  view.on(["page"], () => {
    const page = model.get("page");
    none.hidden = Boolean(page.name);
    monitor.hidden = details.hidden = !page.name;
    if (page.name) details.replaceChildren(...runDetails(view, page));
  });
  return [h("h2", {}, "One run"), none, problem(view, "run"), monitor, details];
}

function runDetails(view, page) {
  const tryOne = (name) => h("button", { type: "button", "aria-label": `Try ${name}`, onclick: () => {
    view.set("tab", "try");
    ask(view, "try", { run: page.name, checkpoint: name });
  } }, "Try");
  const rows = page.checkpoints.map((each) => [foreign(each.name), whole(each.step), digits(each.val_loss),
    digits(each.megabytes), foreign(each.state ?? ""), each.name.startsWith("step-") ? tryOne(each.name) : ""]);
  const heads = ["Checkpoint", "Step", "Held-out loss", "MB", "State", "Playground and explorer"];
  const settings = page.settings.map(([name, value]) => [foreign(name), foreign(digits(value))]);
  return [
    page.log ? h("div", {}, h("h3", {}, "What its process printed last"), logBox(page.log)) : "",
    h("h3", {}, "Checkpoints"),
    rows.length ? plainTable("Checkpoints, newest first", heads, rows) : h("p", {}, "None yet."),
    h("details", {}, h("summary", {}, "Settings"), plainTable("Settings", ["Setting", "Value"], settings)),
  ];
}

function logBox(text) {
  return h("pre", { class: "ld-log", dir: "auto", tabindex: "0", role: "region", "aria-label": "Log" }, text);
}

// ---- start one ----

function startPanel(view) {
  const { model } = view;
  const { presets, recipes, corpora, defaults } = model.get("choices");
  const list = h("datalist", { id: `${view.id}-corpora` }, ...corpora.map((value) => h("option", { value })));
  const fields = {
    preset: h("select", {}, ...choicesOf(presets)),
    recipe: h("select", {}, ...choicesOf(recipes)),
    corpus: h("input", { list: list.id, spellcheck: "false", autocomplete: "off", dir: "auto" }),
    max_steps: h("input", { type: "number", step: "any" }),
    learning_rate: h("input", { type: "number", step: "any" }),
    seed: h("input", { type: "number", step: "any" }),
    name: h("input", { spellcheck: "false", autocomplete: "off", dir: "auto" }),
  };
  for (const [name, value] of Object.entries(defaults)) fields[name].value = String(value);
  const texts = ["preset", "recipe", "corpus", "name"];
  const submit = (event) => {
    event.preventDefault();
    const options = Object.fromEntries(Object.entries(fields).map(([name, field]) =>
      [name, texts.includes(name) ? field.value : typed(field.value)]));
    ask(view, "start", { options });
  };
  const form = h("form", { onsubmit: submit },
    h("div", { class: "lk-fields" },
      labelled(view, "preset", "Model", fields.preset),
      labelled(view, "recipe", "Recipe", fields.recipe),
      labelled(view, "corpus", "Text", fields.corpus, `${corpora.join(", ")}, or a path on the machine that runs this`),
      labelled(view, "max_steps", "Steps", fields.max_steps),
      labelled(view, "learning_rate", "Learning rate", fields.learning_rate, "the recipe's when empty"),
      labelled(view, "seed", "Seed", fields.seed),
      labelled(view, "name", "Name", fields.name, "model and text when empty")), list,
    h("div", { class: "lk-buttons" }, h("button", { type: "submit" }, "Start")));
  return [h("h2", {}, "Start a training"),
    h("p", {}, "It becomes a process of its own, and goes on when this page or the dashboard is closed."),
    form, problem(view, "start"), ...lastJob(view)];
}

function lastJob(view) {
  const status = h("p", { role: "status", dir: "auto" });
  const log = h("div");
  const open = h("button", { type: "button", onclick: () => ask(view, "open", { run: view.model.get("job").run }) }, "Show it");
  const heading = h("h3", {}, "Started last");
  view.on(["job"], () => {
    const { what, state, run, log: lines } = view.model.get("job");
    heading.hidden = log.hidden = !what;
    open.hidden = !run;
    if (!what) return put(status, "");
    const begun = run ? `It is run ${run}.` : state === "runs" ? "It gets ready." : "It ended before it had begun a run.";
    put(status, `${what}: the process ${state}. ${begun}`);
    if (!log.firstChild) log.append(logBox(""));
    put(log.firstChild, lines || "It has printed nothing.");
  });
  return [heading, status, open, log];
}

// ---- try one ----

function tryPanel(view) {
  const { model } = view;
  const [run, checkpoint] = [h("select"), h("select")];
  const load = h("button", { type: "submit" }, "Open");
  const status = h("p", { role: "status", dir: "auto" });
  const fill = (select, values) => {
    const before = select.value;
    const same = values.length === select.options.length && values.every((value, place) => select.options[place].value === value);
    if (same) return;
    select.replaceChildren(...choicesOf(values.map((value) => [value, value])));
    if (values.includes(before)) select.value = before;
  };
  const update = () => {
    const rows = model.get("rows").filter((row) => row.checkpoints.length);
    fill(run, rows.map((row) => row.run));
    fill(checkpoint, rows.find((row) => row.run === run.value)?.checkpoints ?? []);
    load.disabled = !rows.length;
  };
  run.addEventListener("change", update);
  view.on(["rows"], update);
  const form = h("form", { class: "ld-try", onsubmit: (event) => {
    event.preventDefault();
    ask(view, "try", { run: run.value, checkpoint: checkpoint.value });
  } }, labelled(view, "run", "Run", run), labelled(view, "checkpoint", "Checkpoint", checkpoint), load);
  const parts = h("div", {}, h("h3", {}, "Sampling"), slot(view, "playground"), h("h3", {}, "Attention"), slot(view, "explorer"));
  view.on(["opened", "rows"], () => {
    const { state, name } = model.get("opened");
    parts.hidden = !name;
    const ready = run.options.length ? "Choose a checkpoint to write with, and to see what its heads look at." : "There is no checkpoint yet.";
    put(status, state || (name ? `Open: ${name}` : ready));
  });
  return [h("h2", {}, "Try a checkpoint"), form, problem(view, "try"), status, parts];
}

// ---- tabs ----

function tabList(view, panels) {
  const list = h("div", { role: "tablist", "aria-label": "Dashboard", class: "ld-tabs" });
  const tabs = TABS.map(({ name, label }) => h("button", {
    type: "button", role: "tab", id: `${view.id}-tab-${name}`, "aria-controls": panels[name].id, onclick: () => view.set("tab", name),
  }, label));
  list.append(...tabs);
  list.addEventListener("keydown", (event) => {
    const now = TABS.findIndex(({ name }) => name === view.model.get("tab"));
    const places = { ArrowRight: now + 1, ArrowLeft: now - 1, Home: 0, End: TABS.length - 1 };
    if (!(event.key in places)) return;
    event.preventDefault();
    const place = (places[event.key] + TABS.length) % TABS.length;
    view.set("tab", TABS[place].name);
    tabs[place].focus();
  });
  view.on(["tab"], () => {
    const now = view.model.get("tab");
    const leaves = TABS.some(({ name }) => name !== now && panels[name].contains(document.activeElement));
    TABS.forEach(({ name }, place) => {
      tabs[place].setAttribute("aria-selected", String(name === now));
      tabs[place].tabIndex = name === now ? 0 : -1;
      panels[name].hidden = name !== now;
      if (leaves && name === now) tabs[place].focus(); // what had the focus is out of sight
    });
  });
  return list;
}

function render({ model, el }) {
  const view = newView(model);
  const root = h("section", { class: "labkit-widget labkit-dashboard", "aria-label": "Dashboard" });
  const panels = Object.fromEntries(TABS.map(({ name }) => [name, h("div", {
    role: "tabpanel", id: `${view.id}-panel-${name}`, "aria-labelledby": `${view.id}-tab-${name}`, class: "ld-panel",
  })]));
  root.append(tabList(view, panels), ...Object.values(panels));
  el.append(root);
  for (const { name, panel } of TABS) panels[name].append(...panel(view));
  return () => view.close();
}

export default { render };
