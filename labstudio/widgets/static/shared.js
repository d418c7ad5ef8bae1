// What the widgets' browser sides share. Python puts this before each of them (labstudio/widgets/widget_files.py).

const FOCUSABLE = ["input", "select", "textarea", "button", "summary"];
let views = 0;

function h(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== undefined) node.setAttribute(name, value);
  }
  // JupyterLab would take arrow keys, Enter and letters for its own.
  if (FOCUSABLE.includes(tag) || "tabindex" in attributes) node.dataset.lmSuppressShortcuts = "true";
  node.append(...children); // strings become text nodes
  return node;
}

const blanks = (text) => text.replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥");

function probability(value) {
  if (value === 0) return "0";
  return value < 0.0005 ? "<0.001" : value.toFixed(3);
}

// A number as Python should see it; what is no number goes there as it is, and comes back as a message.
function typed(text) {
  return text.trim() === "" || Number.isNaN(Number(text)) ? text : Number(text);
}

// When a box is left or Enter pressed in it; JupyterLab keeps browsers from making that a change.
function onCommit(input, commit) {
  input.addEventListener("change", commit);
  input.addEventListener("keydown", (event) => event.key === "Enter" && input.tagName === "INPUT" && commit());
}

// A widget on the page: its model, an id that no other has, and `on`, which draws now and at every change.
function newView(model) {
  const listeners = [];
  views += 1;
  return {
    model,
    id: `lk-${views}-${Math.floor(Math.random() * 1e9)}`,
    on(traits, update) {
      for (const trait of traits) {
        model.on(`change:${trait}`, update);
        listeners.push([`change:${trait}`, update]);
      }
      update();
    },
    close: () => listeners.forEach(([event, update]) => model.off(event, update)),
  };
}

