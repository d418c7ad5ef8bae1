// What the widgets' browser sides share. Python puts this before each of them (labstudio/widgets/base.py).

const FOCUSABLE = ["input", "select", "textarea", "button", "summary"];
let views = 0;

function h(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== undefined) node.setAttribute(name, value);
  }
  // Else JupyterLab takes arrow keys, Enter and letters as its shortcuts.
  if (FOCUSABLE.includes(tag) || "tabindex" in attributes) node.dataset.lmSuppressShortcuts = "true";
  node.append(...children); // strings become text nodes
  return node;
}

function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// Sets a text only where it is another, so that screen readers do not say it again.
function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

const blanks = (text) => text.replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥");

function probability(value) {
  if (value === 0) return "0";
  return value < 0.0005 ? "<0.001" : value.toFixed(3);
}

// A number as Python should see it; other text is sent as it is, and Python says what is wrong with it.
function typed(text) {
  return text.trim() === "" || Number.isNaN(Number(text)) ? text : Number(text);
}

// When the focus leaves a box or Enter is pressed in it; JupyterLab keeps the browser from reporting Enter as a change.
function onCommit(input, commit) {
  input.addEventListener("change", commit);
  input.addEventListener("keydown", (event) => event.key === "Enter" && input.tagName === "INPUT" && commit());
}

// A widget on the page: its model, an id that no other has, `on`, which draws now and at every change, and `set`.
function newView(model) {
  const listeners = [];
  views += 1;
  return {
    model,
    id: `lk-${views}-${Math.floor(Math.random() * 1e9)}`,
    observers: [],
    on(traits, update) {
      for (const trait of traits) {
        model.on(`change:${trait}`, update);
        listeners.push([`change:${trait}`, update]);
      }
      update();
    },
    set(trait, value) {
      model.set(trait, value);
      model.save_changes();
    },
    close() {
      listeners.forEach(([event, update]) => model.off(event, update));
      this.observers.forEach((observer) => observer.disconnect());
    },
  };
}

// A labelled input that is a trait: text, or a number.
function field(view, trait, label, input, { read = (text) => text, show = String } = {}) {
  input.id = `${view.id}-${trait}`;
  input.dataset.trait = trait;
  onCommit(input, () => view.set(trait, read(input.value)));
  view.on([trait, "invalid"], () => {
    const value = show(view.model.get(trait));
    if (input.value !== value) input.value = value;
    input.setAttribute("aria-invalid", String(view.model.get("invalid") === trait));
  });
  return h("div", { class: "lk-field" }, h("label", { for: input.id }, label), input);
}

function modelField(view) {
  const select = h("select");
  const box = field(view, "model_name", "Model", select);
  view.on(["model_names", "model_name"], () => {
    const names = view.model.get("model_names");
    select.replaceChildren(...names.map((name) => h("option", { value: name }, name)));
    select.value = view.model.get("model_name");
  });
  return box;
}

// What is wrong, and below it what is going on.
function messages(view, traits, status) {
  const error = h("p", { role: "alert", class: "lk-error", dir: "auto" });
  const line = h("p", { role: "status", dir: "auto" });
  view.on(["error"], () => put(error, view.model.get("error")));
  view.on(traits, () => put(line, status()));
  return h("div", { class: "lk-messages" }, error, line);
}
