// The browser's side of labstudio.widgets.RunMonitor and LiveRun. Python reads the run and decides what can be done; this
// file draws the traits and sends back which button was pressed. Text from runs enters the page as text nodes only.

const STATES = {
  ready: "ready to start", offered: "interrupted", training: "training", paused: "paused", stopped: "stopped",
  finished: "finished", failed: "ended by an error", busy: "written by another training",
};

function duration(seconds) {
  if (seconds === undefined || seconds === null) return "–";
  const all = Math.round(seconds);
  if (all < 60) return `${all} s`;
  if (all < 3600) return `${Math.floor(all / 60)} min ${all % 60} s`;
  return `${Math.floor(all / 3600)} h ${Math.floor((all % 3600) / 60)} min`;
}

function charts(view) {
  const { model } = view;
  const loss = chart(view, "Loss", { unit: "nats per token" });
  const perplexity = chart(view, "Perplexity", { unit: "equally likely tokens", log: true });
  const rate = chart(view, "Learning rate", { unit: "per step" });
  const norm = chart(view, "Gradient norm", { unit: "before clipping", log: true });
  view.on(["curves", "evaluations", "total_steps"], () => {
    const curves = model.get("curves");
    const steps = curves.step ?? [];
    const total = Math.max(model.get("total_steps"), steps.at(-1) ?? 0);
    const line = (name, values = []) => ({ name, number: 0, points: steps.map((step, place) => [step, values[place]]) });
    const held = (column) => ({
      name: "held-out", number: 1, marks: true, points: model.get("evaluations").map((row) => [row[0], row[column]]),
    });
    const mean = "training, mean of 20 steps";
    const exponential = curves.loss?.map((each) => (each === null ? null : Math.exp(each)));
    loss.put([line(mean, curves.loss), held(1)], total);
    perplexity.put([line(mean, exponential), held(2)], total);
    rate.put([line("learning rate", curves.learning_rate)], total);
    norm.put([line("gradient norm", curves.grad_norm)], total);
  });
  return h("div", { class: "lr-charts" }, ...[loss, perplexity, rate, norm].map(({ node }) => node));
}

function evaluationsTable(view) {
  const body = h("tbody");
  const head = ["Step", "Held-out loss (nats per token)", "Perplexity"].map((each) => h("th", { scope: "col" }, each));
  view.on(["evaluations"], () => {
    const rows = view.model.get("evaluations").map(([step, loss, perplexity]) =>
      h("tr", {}, h("th", { scope: "row" }, whole(step)), h("td", {}, digits(loss)), h("td", {}, digits(perplexity))));
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
    steps.textContent = `step ${whole(done)} of ${whole(total)}`;
    bar.max = Math.max(1, total);
    bar.value = done;
  });
  return h("header", { class: "lr-header" },
    h("div", { class: "lr-line" }, h("strong", {}, "Run ", name), state),
    h("div", { class: "lr-line" }, h("label", { for: bar.id }, "Progress"), bar, steps));
}

const NUMBERS = [
  ["loss", "Training loss", digits], ["val_loss", "Held-out loss", digits], ["perplexity", "Held-out perplexity", digits],
  ["learning_rate", "Learning rate", digits], ["grad_norm", "Gradient norm", digits],
  ["tokens_per_second", "Tokens per second", digits], ["seconds_left", "Time left, about", duration],
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
    if (model.get("error") || document.activeElement === box) return; // what is wrong stays to be corrected
    box.value = String(rate);
  });
  return node;
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
    const names = all.map((each) => `step ${whole(each.step)}${each.asked ? ", asked for" : ""}`);
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
  const view = newView(model);
  const root = h("section", { class: "labkit-widget labkit-run", "aria-label": "Training run" });
  root.append(header(view), actions(view), messages(view, ["message"], () => model.get("message")), numbers(view),
    charts(view), evaluationsTable(view), samples(view));
  el.append(root);
  return () => view.close();
}

export default { render };
