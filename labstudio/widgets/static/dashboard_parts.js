// Parts of the dashboard's view: tables, labelled fields, other widgets.

// Text from elsewhere, in whatever direction it is written.
const foreign = (text) => h("bdi", {}, text);

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
