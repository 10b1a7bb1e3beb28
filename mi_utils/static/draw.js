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
  onArrows(host, selector);
}

// Each picture, table or list is one stop of the Tab key, and arrow keys move within it: a picture may have hundreds of
// points. Buttons are stops of their own.
const GROUPS = "svg, table, .mi-bars, .mi-section";
const groupOf = (host, element) => (host.contains(element.closest(GROUPS)) ? element.closest(GROUPS) : host);

function members(host, selector, one) {
  const inGroup = (other) => other.tagName !== "BUTTON" && groupOf(host, other) === groupOf(host, one);
  return [...groupOf(host, one).querySelectorAll(selector)].filter(inGroup);
}

function makeReachable(host, selector) {
  const stops = new Map();
  for (const element of host.querySelectorAll(selector)) {
    const isChosen = element.classList.contains("mi-chosen");
    element.classList.add("mi-click");
    element.setAttribute("aria-pressed", isChosen);
    if (element.tagName === "BUTTON") continue;
    element.setAttribute("tabindex", "-1");
    element.setAttribute("role", "button");
    const group = groupOf(host, element);
    if (isChosen || !stops.has(group)) stops.set(group, element);
  }
  for (const element of stops.values()) element.setAttribute("tabindex", "0");
}

// Left and right go through a group in its order, up and down to the nearest above or below, Home and End to its ends.
function onArrows(host, selector) {
  host.addEventListener("keydown", (event) => {
    const element = event.target.closest(selector);
    if (!element || element.tagName === "BUTTON" || event.altKey || event.ctrlKey || event.metaKey) return;
    const all = members(host, selector, element);
    const place = all.indexOf(element);
    const targets = {
      ArrowLeft: () => all[place - 1],
      ArrowRight: () => all[place + 1],
      ArrowUp: () => nearest(all, element, -1),
      ArrowDown: () => nearest(all, element, 1),
      Home: () => all[0],
      End: () => all.at(-1),
    };
    if (!(event.key in targets)) return;
    event.stopPropagation();
    event.preventDefault();
    targets[event.key]()?.focus();
  });
  host.addEventListener("focusin", (event) => {
    const element = event.target.closest(selector);
    if (!element || element.tagName === "BUTTON") return;
    for (const other of members(host, selector, element)) other.setAttribute("tabindex", other === element ? "0" : "-1");
  });
}

function nearest(all, element, sign) {
  const centre = (one) => {
    const box = one.getBoundingClientRect();
    return [box.left + box.width / 2, box.top + box.height / 2];
  };
  const [x, y] = centre(element);
  const distances = all.map(centre).map(([across, down]) => {
    const ahead = sign * (down - y);
    return ahead > 1 ? ahead + 2 * Math.abs(across - x) : Infinity;
  });
  const least = distances.reduce((best, distance) => Math.min(best, distance), Infinity);
  return least < Infinity ? all[distances.indexOf(least)] : undefined;
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
