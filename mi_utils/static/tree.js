// A tree of markup.py whose marked elements can be chosen. Traits: see TreeView in widgets.py.

const MARKED = "[data-latent], [data-row], [data-token], [data-answer], [data-atom]";

function render({ model, el }) {
  const message = draw(["p", { class: "mi-message", role: "status" }]);
  const body = draw(["div", {}]);
  el.classList.add("mi-widget");
  el.replaceChildren(message, body);
  onChoice(body, MARKED, (data) => {
    model.set("clicked", { ...data, n: (model.get("clicked").n ?? 0) + 1 });
    model.save_changes();
  });

  function show() {
    message.textContent = model.get("message");
    redraw(body, [model.get("tree")], MARKED);
  }
  model.on("change:tree change:message", show);
  show();
  return () => model.off("change:tree change:message", show);
}

export default { render };
