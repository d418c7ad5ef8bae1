// The browser's side of labstudio.SamplingPlayground. Python decides; this file draws what the traits say and
// sends back what the reader does. Text from models and prompts enters the page as text nodes only.

const SETTINGS = [
  { name: "temperature", label: "Temperature", min: 0, max: 2, step: 0.05, off: 1 },
  { name: "top_k", label: "Top-k", off: null },
  { name: "top_p", label: "Top-p", min: 0.01, max: 1, step: 0.01, off: 1 },
  { name: "min_p", label: "Min-p", min: 0, max: 1, step: 0.01, off: 0 },
  { name: "repetition_penalty", label: "Repetition penalty", min: 1, max: 2, step: 0.05, off: 1 },
];
const STAGES = [
  { name: "raw", title: "What the model says" },
  { name: "tempered", title: "After penalty, temperature" },
  { name: "filtered", title: "After the filters" },
];
const SURPRISE = [1, 3, 6, 10]; // bits at which a darker colour begins
const FINISHES = {
  length: "as many as asked for",
  eos: "it ended with the end-of-text token",
  stop: "it came to a stop string",
  stopped: "stopped by you",
};

// Whole numbers from 1 to the vocabulary, first one by one and then 5 % apart.
function topKStops(vocab) {
  const stops = [];
  for (let k = 1; k < vocab; k = Math.max(k + 1, Math.round(k * 1.05))) stops.push(k);
  return [...stops, vocab];
}

function sliderScale(setting, vocab) {
  if (setting.name !== "top_k") {
    const { min, max, step } = setting;
    return { min, max, step, value: (position) => position, position: (value) => value };
  }
  const stops = topKStops(vocab);
  const position = (k) => {
    const above = stops.findIndex((stop) => stop >= k);
    return above < 0 ? stops.length - 1 : above;
  };
  return { min: 0, max: stops.length - 1, step: 1, value: (at) => stops[at], position };
}

// One setting: a slider that updates while it moves, and a number box that updates when it is left.
function control(view, setting, suffix, column) {
  const trait = setting.name + suffix;
  const id = `${view.id}-${trait}`;
  const { model } = view;
  const slider = h("input", { type: "range", id, "data-trait": trait });
  const box = h("input", {
    type: "number", step: "any", "data-trait": trait, "aria-label": `${setting.label}${column}, as a number`,
  });
  const name = column ? h("span", { class: "lk-hidden" }, column) : "";
  const label = h("label", { for: id }, setting.label, name);
  let scale = sliderScale(setting, 2);
  slider.addEventListener("input", () => view.set(trait, scale.value(Number(slider.value))));
  onCommit(box, () => view.set(trait, typed(box.value)));
  const update = () => {
    const vocab = Math.max(1, model.get("vocab_size"));
    scale = sliderScale(setting, vocab);
    for (const name of ["min", "max", "step"]) slider[name] = scale[name];
    const value = model.get(trait) ?? setting.off ?? vocab;
    if (typeof value === "number") {
      if (value >= 0) slider.value = scale.position(value);
      slider.setAttribute("aria-valuetext", String(value));
      box.value = String(value);
    }
    box.setAttribute("aria-invalid", String(model.get("invalid") === trait));
  };
  view.on([trait, "vocab_size", "invalid"], update);
  return h("div", { class: "lp-control" }, label, slider, box);
}

function moreFields(view) {
  const stops = {
    read: (text) => text.split("\n").filter((line) => line).map((line) => line.replaceAll("\\n", "\n")),
    show: (list) => list.map((stop) => stop.replaceAll("\n", "\\n")).join("\n"),
  };
  const number = () => h("input", { type: "number", step: "any" });
  return h(
    "details", {}, h("summary", {}, "Seed, length and stop strings"),
    h("div", { class: "lk-fields" },
      field(view, "seed", "Seed", number(), { read: typed }),
      field(view, "max_new_tokens", "Tokens to write at most", number(), { read: typed }),
      field(view, "stop", "Stop strings, one a line (\\n is a line break)", h("textarea", { rows: 2 }), stops)),
  );
}

function buttons(view) {
  const { model } = view;
  const ask = (action) => () => model.send({ do: action });
  const button = (label, onclick) => h("button", { type: "button", onclick }, label);
  const another = () => view.set("seed", Number.isInteger(model.get("seed")) ? model.get("seed") + 1 : 0);
  const compare = button("Compare two settings", () => view.set("compare", !model.get("compare")));
  view.on(["compare"], () => compare.setAttribute("aria-pressed", String(model.get("compare"))));
  return h(
    "div", { class: "lk-buttons" }, button("Write", ask("write")), button("Stop", ask("halt")),
    button("Another text", another), button("Draw 1,000", ask("draw")), compare,
  );
}

// The largest bar's scale, the same for both columns: bars that shrink and grow would say nothing.
function scaleTop(model) {
  const columns = model.get("compare") ? ["distribution", "distribution_b"] : ["distribution"];
  const rows = columns.flatMap((name) => model.get(name).rows ?? []);
  const largest = Math.max(0, ...rows.flatMap((row) => STAGES.map((stage) => row[stage.name])));
  return [0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8].find((top) => largest <= top) ?? 1;
}

function bar(value, top, kind) {
  const node = h("div", { class: `lp-bar lp-${kind}` });
  node.style.width = `${(100 * value) / top}%`;
  return node;
}

function stageCell(row, stage, top, counts, number) {
  const value = row[stage];
  const cut = stage === "filtered" && value === 0;
  const track = h("div", { class: "lp-track" }, bar(cut ? row.tempered : value, top, cut ? "cut" : stage));
  if (stage === "filtered" && counts.draws && !cut) {
    const mark = h("div", { class: "lp-drawn" });
    mark.style.left = `${(100 * counts.counts[number]) / counts.draws / top}%`;
    track.append(mark);
  }
  const shown = h("span", { class: "lp-number" }, cut ? "cut" : probability(value));
  return h("td", { "data-stage": stage, "data-id": row.id, "data-value": value, "data-cut": cut },
    h("div", { class: "lp-cell" }, track, shown));
}

function tableHead(distribution) {
  const heads = STAGES.map(({ name, title }) => {
    const bits = `${distribution.entropy[name].toFixed(2)} bits ≈ ${distribution.effective[name].toFixed(1)} tokens`;
    const exact = { "data-entropy": distribution.entropy[name], "data-effective": distribution.effective[name] };
    return h("th", { scope: "col", "data-stage": name, ...exact },
      title, h("span", { class: "lk-small", title: "entropy, and as many equally likely tokens" }, bits));
  });
  return h("tr", {}, h("th", { scope: "col" }, "Token"), ...heads, h("th", { scope: "col" }, "Drawn"));
}

function tableFoot(distribution, counts) {
  const drawn = (counts.counts ?? []).reduce((sum, count) => sum + count, 0);
  const cells = STAGES.map(({ name }) =>
    h("td", { "data-stage": name, "data-rest": distribution.rest[name] },
      h("span", { class: "lp-number" }, probability(distribution.rest[name]))));
  const others = `${distribution.others.toLocaleString("en")} others`;
  return h("tr", {}, h("th", { scope: "row" }, others), ...cells,
    h("td", { class: "lp-count" }, counts.draws ? String(counts.draws - drawn) : "–"));
}

function tableRows(distribution, counts, top) {
  return distribution.rows.map((row, number) =>
    h("tr", {},
      h("th", { scope: "row", title: blanks(row.label) }, h("bdi", {}, blanks(row.label))),
      ...STAGES.map(({ name }) => stageCell(row, name, top, counts, number)),
      h("td", { class: "lp-count", "data-count": counts.counts?.[number] },
        counts.draws ? String(counts.counts[number]) : "–")));
}

// What the headings of a column add when there are two of them.
function columnName(model, suffix) {
  if (!model.get("compare")) return "";
  return suffix ? ", setting B" : ", setting A";
}

// The distribution: bars that are also a table of numbers.
function distributionTable(view, suffix) {
  const { model } = view;
  const [head, body, foot] = [h("thead"), h("tbody"), h("tfoot")];
  const caption = h("caption");
  const legend = h("p", { class: "lk-small lp-legend" });
  const update = () => {
    const distribution = model.get(`distribution${suffix}`);
    const counts = model.get(`counts${suffix}`);
    caption.textContent = `Next token after the prompt${columnName(model, suffix)}`;
    if (!distribution.rows) return;
    const top = scaleTop(model);
    head.replaceChildren(tableHead(distribution));
    body.replaceChildren(...tableRows(distribution, counts, top));
    foot.replaceChildren(tableFoot(distribution, counts));
    const vocab = distribution.rows.length + distribution.others;
    const draws = counts.draws ? ` Vertical marks: ${counts.draws.toLocaleString("en")} draws.` : "";
    legend.textContent = `${distribution.kept.toLocaleString("en")} of ${vocab.toLocaleString("en")} tokens `
      + `left. Bars run from 0 to ${top}. Hatched: cut, with what it had before.${draws}`;
  };
  view.on(["distribution", "distribution_b", "compare", `counts${suffix}`], update);
  return h("div", {}, h("table", {}, caption, head, body, foot), legend);
}

const surpriseClass = (bits) => `lp-surprise-${SURPRISE.filter((limit) => bits >= limit).length}`;

// What is known of one piece of text: how surprising it was, and what else was likely there.
function details(piece, number) {
  if (!piece) return ["Point at a word of the text, or step through it with the arrow keys."];
  const ids = piece.ids.length > 1 ? `ids ${piece.ids.join(" ")}` : `id ${piece.ids[0]}`;
  const chance = probability(2 ** -piece.bits);
  const others = piece.others.map(([label, value]) =>
    h("li", {}, h("bdi", {}, blanks(label)), ` ${probability(value)}`));
  return [
    h("bdi", { class: "lp-token" }, blanks(piece.text)),
    ` (${ids}, place ${number + 1}): probability ${chance}, ${piece.bits.toFixed(2)} bits of surprise. `
      + "The model's likeliest there, before any filter:",
    h("ol", {}, ...others),
  ];
}

// The text, one option per piece: hover or focus shows its details, arrow keys move.
function textBox(view, suffix) {
  const { model } = view;
  const panel = h("div", { class: "lp-details", id: `${view.id}-details${suffix}` }, ...details());
  const prompt = h("bdi", { class: "lp-prompt", title: "the prompt" });
  const list = h("span", { class: "lp-pieces" });
  const end = h("span", { class: "lp-end" });
  let pieces = [];
  let current = 0;
  const show = (number) => panel.replaceChildren(...details(pieces[number], number));
  const focus = (number) => {
    list.children[current]?.setAttribute("tabindex", "-1");
    list.children[current]?.setAttribute("aria-selected", "false");
    current = Math.min(Math.max(number, 0), pieces.length - 1);
    list.children[current].setAttribute("tabindex", "0");
    list.children[current].setAttribute("aria-selected", "true");
    list.children[current].focus();
    show(current);
  };
  const indexOf = (event) => [...list.children].indexOf(event.target.closest("[role=option]"));
  list.addEventListener("mouseover", (event) => indexOf(event) >= 0 && show(indexOf(event)));
  list.addEventListener("mouseleave", () => list.contains(document.activeElement) && show(current));
  list.addEventListener("click", (event) => indexOf(event) >= 0 && focus(indexOf(event)));
  list.addEventListener("focusin", () => show(current));
  list.addEventListener("keydown", (event) => {
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity };
    if (!(event.key in steps)) return;
    event.preventDefault();
    focus(current + steps[event.key]);
  });
  const update = () => {
    const text = model.get(`text${suffix}`);
    const same = pieces.every((piece, number) => piece.text === text.pieces?.[number]?.text
      && piece.bits === text.pieces[number].bits);
    if (!same) {
      list.replaceChildren();
      current = 0;
      panel.replaceChildren(...details());
    }
    const old = list.children.length;
    pieces = text.pieces ?? [];
    list.append(...pieces.slice(old).map((piece, number) => option(piece, old + number, panel.id)));
    if (pieces.length) {
      list.setAttribute("role", "listbox");
      list.setAttribute("aria-label", `The text${columnName(model, suffix)}, token by token`);
    } else list.removeAttribute("role");
    title.textContent = `Text${columnName(model, suffix)}, shaded where it surprises the model`;
    prompt.textContent = text.prompt ?? "";
    end.textContent = text.finish ? ` ■ ${text.count} tokens: ${FINISHES[text.finish]}` : "";
  };
  const title = h("h4");
  view.on([`text${suffix}`, "compare"], update);
  return h("div", {}, title, h("div", { class: "lp-text", dir: "auto" }, prompt, list, end), panel);
}

function option(piece, number, panel) {
  const breaks = piece.text.includes("\n") ? " lp-break" : "";
  return h("span", {
    role: "option", "aria-selected": "false", "aria-describedby": panel, tabindex: number ? "-1" : "0",
    "aria-label": `${blanks(piece.text)}, ${piece.bits.toFixed(1)} bits`, "data-bits": piece.bits,
    class: surpriseClass(piece.bits) + breaks,
  }, piece.text);
}

function surpriseLegend() {
  const names = ["under 1", "1 to 3", "3 to 6", "6 to 10", "10 and more"];
  const swatches = names.map((name, number) =>
    h("span", { class: `lp-swatch lp-surprise-${number}` }, name));
  return h("p", { class: "lk-small" }, "Surprise in bits: ", ...swatches);
}

function columnBox(view, suffix) {
  const { model } = view;
  const legend = h("legend", {}, "Settings");
  const name = suffix ? ", setting B" : "";
  const controls = SETTINGS.map((setting) => control(view, setting, suffix, name));
  const box = h("div", { class: "lp-column", "data-column": suffix ? "b" : "a" },
    h("fieldset", {}, legend, ...controls),
    distributionTable(view, suffix), textBox(view, suffix));
  view.on(["compare"], () => {
    box.hidden = Boolean(suffix) && !model.get("compare");
    legend.textContent = suffix ? "Setting B" : model.get("compare") ? "Setting A" : "Settings";
  });
  return box;
}

function render({ model, el }) {
  const view = newView(model);
  const root = h("section", { class: "labkit-widget labkit-playground", "aria-label": "Sampling playground" });
  root.append(
    h("div", { class: "lk-fields" }, modelField(view),
      field(view, "prompt", "Prompt", h("textarea", { rows: 2, dir: "auto" }))),
    moreFields(view), buttons(view),
    messages(view, ["writing", "notice"], () => `${model.get("writing") ? "Writing …" : "Ready."} ${model.get("notice")}`),
    h("div", { class: "lp-columns" }, columnBox(view, ""), columnBox(view, "_b")),
    surpriseLegend(),
  );
  el.append(root);
  return () => view.close();
}

export default { render };
