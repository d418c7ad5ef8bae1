// Curves on axes: what RunMonitor draws of one run, and the dashboard of several.

const HEIGHT = 190; // of a chart, in pixels
const EDGE = { left: 56, right: 26, top: 8, bottom: 34 };
const DASHES = ["", "7 4", "2 3", "9 3 2 3"];
const COLOURS = 6; // in shared.css

const missing = (value) => value === undefined || value === null;
const whole = (value) => (missing(value) ? "–" : Math.round(value).toLocaleString("en"));

// Few digits, as a person would write them.
function digits(value) {
  if (missing(value)) return "–";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value)) return whole(value);
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-3) return value.toExponential(2).replace(/\.?0+e/, "e");
  return size >= 1000 ? whole(value) : String(Number(value.toPrecision(4)));
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
  const place = log ? Math.log10 : (value) => value;
  if (log) [low, high] = [low / 1.1, high * 1.1];
  else {
    const room = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
    [low, high] = [low >= 0 ? Math.max(0, low - room) : low - room, high + room];
  }
  const part = (to - from) / (place(high) - place(low));
  const ticks = log ? logTicks(low, high) : linearTicks(low, high);
  return { ticks, at: (value) => from + (place(value) - place(low)) * part };
}

// A chart of lines, each with a name, a number that decides its style, [x, y] points and, where they are few, marks.
// put(lines, total) draws them, x from 0 to total.
function chart(view, title, { unit, log = false, x = "step", legend = true }) {
  const picture = svg("svg", { role: "img", height: HEIGHT });
  const keys = h("ul", { class: "lk-legend" });
  const node = h("figure", { class: "lk-chart", "data-chart": title }, h("figcaption", {}, title,
    h("span", { class: "lk-unit" }, ` (${unit}${log ? ", logarithmic" : ""})`)), picture, legend ? keys : "");
  let shown = { lines: [], total: 1 };
  const draw = () => {
    const width = Math.max(160, node.clientWidth);
    picture.setAttribute("width", width);
    const drawable = ([, y]) => !missing(y) && (!log || y > 0);
    const lines = shown.lines.map((line) => ({ ...line, points: line.points.filter(drawable) }));
    const values = lines.flatMap((line) => line.points.map(([, y]) => y));
    const [right, bottom] = [width - EDGE.right, HEIGHT - EDGE.bottom];
    const across = (value) => EDGE.left + ((right - EDGE.left) * value) / shown.total;
    const y = values.length ? scale(values, log, bottom, EDGE.top) : null;
    picture.replaceChildren(axes(across, y, x, shown.total, right, bottom), ...lines.map((line) => curve(line, across, y)));
    const last = lines.filter((line) => line.points.length).map((line) => `${line.name} ${digits(line.points.at(-1)[1])}`);
    picture.setAttribute("aria-label", `${title}; latest: ${last.join(", ") || "nothing yet"}`);
  };
  const observer = new ResizeObserver(draw);
  observer.observe(node);
  view.observers.push(observer);
  const putLines = (lines, total) => {
    shown = { lines, total: Math.max(1, total) };
    const wanted = lines.length > 1 ? lines : [];
    if (keys.childElementCount !== wanted.length) keys.replaceChildren(...wanted.map(legendEntry));
    draw();
  };
  return { node, put: putLines };
}

function axes(across, y, label, total, right, bottom) {
  const group = svg("g", { class: "lk-axes" }, svg("path", { d: `M${EDGE.left} ${EDGE.top}V${bottom}H${right}` }));
  for (const tick of linearTicks(0, total, 4)) {
    group.append(svg("path", { d: `M${across(tick)} ${bottom}v4` }),
      svg("text", { x: across(tick), y: bottom + 15, "text-anchor": "middle" }, whole(tick)));
  }
  group.append(svg("text", { x: (EDGE.left + right) / 2, y: bottom + 30, "text-anchor": "middle" }, label));
  for (const tick of y?.ticks ?? []) {
    group.append(svg("path", { d: `M${EDGE.left} ${y.at(tick)}H${right}`, class: "lk-grid" }),
      svg("text", { x: EDGE.left - 5, y: y.at(tick) + 4, "text-anchor": "end" }, digits(tick)));
  }
  return group;
}

const lineStyle = (number) => ({
  class: `lk-curve lk-colour-${number % COLOURS}`, "stroke-dasharray": DASHES[number % DASHES.length],
});

function curve(line, across, y) {
  const places = line.points.map(([x, value]) => [across(x).toFixed(1), y.at(value).toFixed(1)]);
  const group = svg("g", { ...lineStyle(line.number), "data-points": places.length });
  if (places.length) group.append(svg("path", { d: `M${places.map((place) => place.join(" ")).join("L")}` }));
  if (line.marks || places.length === 1) {
    group.append(...places.map(([cx, cy]) => svg("circle", { cx, cy, r: 2.5 })));
  }
  return group;
}

function legendEntry(line) {
  const key = svg("svg", { width: 34, height: 10, "aria-hidden": "true" },
    svg("g", lineStyle(line.number), svg("path", { d: "M1 5H33" }), ...(line.marks ? [svg("circle", { cx: 17, cy: 5, r: 2.5 })] : [])));
  return h("li", {}, key, h("bdi", {}, line.name));
}
