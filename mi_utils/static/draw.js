// What the widgets share: trees of markup.py as DOM, clicks by mouse and keyboard, redraws that keep the focus, and a
// stand-in for the widget's model where no kernel is. widgets.py puts TAGS, ATTRIBUTES and STYLE, the lists of
// markup.py, in front of this file and one widget behind it: together they are one ES module.

const SVG = "http://www.w3.org/2000/svg";

// Only what is on the lists is drawn, and text goes into text nodes: a hostile string can at most look odd.
function draw(node, inSvg = false) {
  if (!Array.isArray(node)) return document.createTextNode(node);
  const [tag, attributes, ...children] = node;
  inSvg ||= tag === "svg";
  const name = TAGS.has(tag) ? tag : "span";
  const drawn = inSvg ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [attribute, value] of Object.entries(attributes)) {
    if (ATTRIBUTES.has(attribute)) drawn.setAttribute(attribute, value);
    if (attribute === "style" && STYLE.test(value)) drawn.style.setProperty(...value.split(":"));
  }
  drawn.append(...children.map((child) => draw(child, inSvg)));
  return drawn;
}

// Replaces what `host` shows. What matches `selector` can be reached by key. The focus stays on the element with the
// same data, or else on the host.
function redraw(host, nodes, selector) {
  const focused = host.getRootNode().activeElement;
  const place = focused && focused !== host && host.contains(focused) ? alike(host, focused).indexOf(focused) : -1;
  host.replaceChildren(...nodes.map((node) => draw(node)));
  makeReachable(host, selector);
  if (place < 0) return;
  const found = alike(host, focused);
  host.tabIndex = -1;
  (found[place] ?? found[0] ?? host).focus({ preventScroll: true });
}

const identity = (element) => element.tagName + JSON.stringify({ ...element.dataset });

function alike(host, one) {
  return [...host.querySelectorAll(one.tagName)].filter((other) => identity(other) === identity(one));
}

// Calls `act` with the data of the innermost element of `host` that matches, when it is clicked or chosen by key.
function onChoice(host, selector, act) {
  const chosen = (event) => {
    const element = event.target.closest(selector);
    if (!element || !host.contains(element)) return;
    event.stopPropagation();
    if (event.type === "keydown") event.preventDefault();
    act({ ...element.dataset });
  };
  host.addEventListener("click", chosen);
  host.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    if (event.target.tagName === "BUTTON") event.stopPropagation(); // it sends a click of its own
    else if (!event.repeat) chosen(event);
  });
}

function makeReachable(host, selector) {
  for (const element of host.querySelectorAll(selector)) {
    element.classList.add("mi-click");
    element.setAttribute("aria-pressed", element.classList.contains("mi-chosen"));
    if (element.tagName === "BUTTON") continue;
    element.setAttribute("tabindex", "0");
    element.setAttribute("role", "button");
  }
}

function localModel(state) {
  const listeners = new Map();
  const of = (event) => listeners.get(event) ?? listeners.set(event, new Set()).get(event);
  return {
    get: (trait) => state[trait],
    set: (trait, value) => {
      if (state[trait] === value) return;
      state[trait] = value;
      for (const listener of [...of(`change:${trait}`)]) listener();
    },
    save_changes: () => {},
    on: (events, listener) => events.split(" ").forEach((event) => of(event).add(listener)),
    off: (events, listener) => events.split(" ").forEach((event) => of(event).delete(listener)),
  };
}

// Brings to life every `.mi-twin` of the page that is not yet: its state is in a script of JSON.
function drawTwins(render) {
  for (const twin of document.querySelectorAll(".mi-twin:not(.mi-live)")) {
    const state = JSON.parse(twin.querySelector("script").textContent);
    twin.classList.add("mi-live");
    render({ model: localModel(state), el: twin });
  }
}
