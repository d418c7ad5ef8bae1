// Parts of the dashboard's view: tables that keep their rows, curves of several runs, labelled fields.

const DASHES = ["", "7 4", "2 3", "9 3 2 3"];
const COLOURS = 6; // in dashboard.css
const CHART = { width: 620, height: 240, left: 56, right: 12, top: 10, bottom: 40 };

const many = (value) => (value === null || value === undefined ? "–" : Math.round(value).toLocaleString("en"));

function digits(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  return size >= 1e6 || size < 1e-3 ? value.toExponential(2) : String(Number(value.toPrecision(4)));
}

// Text of somebody else's, in whatever direction it is written.
const foreign = (text) => h("bdi", {}, text);

function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// About four round values from low to high.
function ticks(low, high) {
  const raw = (high - low) / 4;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((each) => each * power >= raw);
  const found = [];
  for (let n = Math.ceil(low / step); n * step <= high * (1 + 1e-9); n += 1) found.push(Number((n * step).toPrecision(12)));
  return found;
}

const lineStyle = (number) => ({
  class: `ld-line ld-colour-${number % COLOURS}`, "stroke-dasharray": DASHES[number % DASHES.length],
});

// Curves of [tokens, loss] points, one per run, on common axes.
function lossChart(title, curves, names) {
  const { width, height, left, right, top, bottom } = CHART;
  const points = curves.flat();
  if (!points.length) return h("figure", {}, h("figcaption", {}, title), h("p", {}, "Nothing yet."));
  const far = Math.max(1, ...points.map(([x]) => x));
  const losses = points.map(([, y]) => y);
  const room = (Math.max(...losses) - Math.min(...losses)) * 0.05 || 0.1;
  const [low, high] = [Math.min(...losses) - room, Math.max(...losses) + room];
  const x = (value) => left + ((width - left - right) * value) / far;
  const y = (value) => top + ((height - top - bottom) * (high - value)) / (high - low);
  const lines = curves.map((curve, number) => {
    const places = curve.map(([a, b]) => `${x(a).toFixed(1)} ${y(b).toFixed(1)}`);
    const group = svg("g", lineStyle(number), svg("path", { d: places.length ? `M${places.join("L")}` : "" }));
    if (curve.length < 30) curve.forEach(([a, b]) => group.append(svg("circle", { cx: x(a), cy: y(b), r: 2.5 })));
    return group;
  });
  const axes = svg("g", { class: "ld-axes" }, svg("path", { d: `M${left} ${top}V${height - bottom}H${width - right}` }));
  for (const tick of ticks(0, far)) {
    axes.append(svg("path", { d: `M${x(tick)} ${height - bottom}v4` }),
      svg("text", { x: x(tick), y: height - bottom + 16, "text-anchor": "middle" }, many(tick)));
  }
  for (const tick of ticks(low, high)) {
    axes.append(svg("path", { d: `M${left} ${y(tick)}H${width - right}`, class: "ld-grid" }),
      svg("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, digits(tick)));
  }
  axes.append(svg("text", { x: (left + width) / 2, y: height - 6, "text-anchor": "middle" }, "tokens trained on"));
  const last = curves.map((curve, number) => `${names[number]} ${curve.length ? digits(curve.at(-1)[1]) : "nothing"}`);
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title}; at the end: ${last.join(", ")}` });
  picture.append(axes, ...lines);
  return h("figure", {}, h("figcaption", {}, title), picture);
}

function chartLegend(names) {
  return h("ul", { class: "ld-legend" }, ...names.map((name, number) =>
    h("li", {}, svg("svg", { width: 34, height: 10, "aria-hidden": "true" },
      svg("g", lineStyle(number), svg("path", { d: "M1 5H33" }))), foreign(name))));
}

// A table with a caption, headings and rows of cells; each cell is a text or a node. It scrolls by keyboard too.
function plainTable(caption, heads, rows) {
  const cells = (row) => row.map((cell, place) => h(place ? "td" : "th", place ? {} : { scope: "row" }, cell));
  const table = h("table", {}, h("caption", {}, caption),
    h("thead", {}, h("tr", {}, ...heads.map((head) => h("th", { scope: "col" }, head)))),
    h("tbody", {}, ...rows.map((row) => h("tr", {}, ...cells(row)))));
  return h("div", { class: "ld-scroll", tabindex: "0", role: "region", "aria-label": caption }, table);
}

function labelled(view, name, label, input, remark = "") {
  input.id = `${view.id}-${name}`;
  input.name = name;
  const hint = h("span", { class: "lk-small", id: `${input.id}-hint` }, remark);
  if (remark) input.setAttribute("aria-describedby", hint.id);
  return h("div", { class: "lk-field" }, h("label", { for: input.id }, label), input, remark ? hint : "");
}

const choicesOf = (pairs) => pairs.map(([value, label]) => h("option", { value }, label));

// The problem that belongs to a tab, said at once to those who do not see it.
function problem(view, where) {
  const node = h("p", { role: "alert", class: "lk-error", dir: "auto" });
  view.on(["errors"], () => put(node, view.model.get("errors")[where] ?? ""));
  return node;
}

// Puts another widget's view into a place, and takes it away when there is none any more.
function slot(view, trait) {
  const node = h("div", { class: `ld-slot ld-${trait}` });
  let shown = null;
  let child = null;
  const update = async () => {
    const reference = view.model.get(trait);
    if (reference === shown) return;
    shown = reference;
    child?.remove();
    child = null;
    node.replaceChildren();
    if (!reference) return;
    const manager = view.model.widget_manager;
    const made = await manager.create_view(await manager.get_model(reference.slice("IPY_MODEL_".length)));
    if (shown !== reference) return made.remove();
    child = made;
    node.replaceChildren(made.el);
  };
  view.on([trait], update);
  return node;
}
