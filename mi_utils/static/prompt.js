// A prompt's tokens and, of the chosen token, its active latents. All active pairs of the prompt are in the page, so
// choosing a token or a latent needs no kernel. Traits: see PromptView in widgets.py.

const TRAITS = [
  "tokens", "latents", "acts", "bits", "names", "token", "latent", "order", "n_shown", "cards", "message",
];
const [TOKEN, LATENT] = ["[data-token]", "[data-latent]"];
const ORDERS = { specific: "most specific first", strong: "strongest first" };
const BITS = "How rare it is: on 1 token in 2^bits, this latent is at least this active.";
const DARKEST = 0.65; // still legible under black and under white text

const number = (value) => (Math.abs(value) >= 100 ? value.toFixed(0) : value.toPrecision(3));
const short = (text) => (text.length > 80 ? `${text.slice(0, 80)}…` : text);
const largest = (values) => values.reduce((most, value) => Math.max(most, value), 0);

function actOf(state, place, latent) {
  const found = state.latents[place].indexOf(latent);
  return found < 0 ? 0 : state.acts[place][found];
}

function nameOf(state, latent) {
  return state.names[latent] ? ` “${short(state.names[latent])}”` : "";
}

function shades(state) {
  return state.latent < 0
    ? state.bits.map(largest)
    : state.tokens.map((_, place) => actOf(state, place, state.latent));
}

function legend(state) {
  const most = largest(shades(state));
  const unit = state.latent < 0 ? " bits" : "";
  const meaning =
    state.latent < 0
      ? "how specific the most specific latent of each token is"
      : `activation of latent ${state.latent}${nameOf(state, state.latent)}`;
  const silent = state.latent < 0 ? "no latent is active" : ", which is silent on this prompt";
  if (!state.tokens.length) return [["i", {}, "No tokens yet."]];
  if (most === 0) return [["span", {}, state.latent < 0 ? `Colour: ${silent}` : `Colour: ${meaning}${silent}`]];
  return [
    ["span", {}, `Colour: ${meaning}`],
    ["span", { class: "mi-scale" }, "0 ", ["span", { class: "mi-ramp" }], ` ${number(most)}${unit}`],
  ];
}

function strip(state) {
  const values = shades(state);
  const most = largest(values);
  return state.tokens.map((text, place) => {
    const active = state.latents[place];
    const bits = largest(state.bits[place]);
    const value =
      state.latent < 0
        ? active.length && `most specific: latent ${active[state.bits[place].indexOf(bits)]}, ${number(bits)} bits`
        : `activation of latent ${state.latent}: ${number(values[place])}`;
    const attributes = {
      class: place === state.token ? "mi-tok mi-chosen" : "mi-tok",
      "data-token": place,
      title: [`position ${place}: ${short(text)}`, value, `${active.length} active latents`].filter(Boolean).join("\n"),
    };
    if (values[place] > 0) attributes.style = `background:rgba(0,114,178,${(DARKEST * values[place]) / most})`;
    return ["span", attributes, text || "∅"];
  });
}

function rows(state) {
  if (!state.tokens.length) return [];
  if (!state.tokens[state.token]) return [["p", { class: "mi-note" }, "Click a token to see its latents."]];
  const [ids, acts, bits] = [state.latents, state.acts, state.bits].map((lists) => lists[state.token]);
  const measure = state.order === "strong" ? acts : bits;
  const ranked = ids
    .map((_, k) => k)
    .sort((a, b) => measure[b] - measure[a] || acts[b] - acts[a] || ids[a] - ids[b])
    .slice(0, state.n_shown);
  const most = largest(measure);
  const bar = state.order === "strong" ? "bar: activation" : "bar: bits";
  const heading = `Token ${state.token} “${short(state.tokens[state.token])}”: ${ranked.length} of ${ids.length} active latents`;
  return [
    ["h4", {}, heading],
    [
      "div",
      { class: "mi-bars mi-latents" },
      ["div", { class: "mi-row mi-row-head" }, ...["latent", bar, "activation", "bits", "label"].map((title) =>
        ["span", title === "bits" ? { title: BITS } : {}, title])],
      ...ranked.map((k) => [
        "div",
        { class: ids[k] === state.latent ? "mi-row mi-chosen" : "mi-row", "data-latent": ids[k] },
        ["span", { class: "mi-id" }, String(ids[k])],
        ["span", { class: "mi-track" }, ["span", { class: "mi-bar", style: `width:${(100 * measure[k]) / most}%` }]],
        ["span", { class: "mi-val" }, number(acts[k])],
        ["span", { class: "mi-val", title: BITS }, bits[k].toFixed(1)],
        ["span", { class: "mi-name", title: state.names[ids[k]] ?? "" }, short(state.names[ids[k]] ?? "")],
      ]),
    ],
  ];
}

function card(state) {
  if (state.latent < 0 || !Object.keys(state.cards).length) return [];
  return [state.cards[state.latent] ?? ["p", { class: "mi-note" }, `No card of latent ${state.latent} is here.`]];
}

function render({ model, el }) {
  const choose = (trait, value) => {
    model.set(trait, value);
    model.save_changes();
  };
  const part = (name, ...children) => draw(["div", { class: name }, ...children]);
  const button = (text, act) => {
    const drawn = draw(["button", { class: "mi-chip" }, text]);
    drawn.addEventListener("keydown", (event) => event.stopPropagation());
    drawn.addEventListener("click", act);
    return drawn;
  };

  const parts = { legend: part("mi-legend"), strip: part("mi-strip"), rows: part("mi-rows"), card: part("mi-shown") };
  const message = draw(["p", { class: "mi-message", role: "status" }]);
  const all = button("all latents", () => choose("latent", -1));
  const orders = Object.entries(ORDERS).map(([order, text]) => [order, button(text, () => choose("order", order))]);
  const colours = part("mi-controls");
  colours.append(parts.legend, all);
  const sorting = part("mi-controls", "Latents: ");
  sorting.append(...orders.map(([, drawn]) => drawn));
  el.classList.add("mi-widget");
  el.replaceChildren(message, colours, parts.strip, sorting, parts.rows, parts.card);

  onChoice(parts.strip, TOKEN, ({ token }) => choose("token", Number(token)));
  onChoice(parts.rows, LATENT, ({ latent }) =>
    choose("latent", Number(latent) === model.get("latent") ? -1 : Number(latent)));
  onChoice(parts.card, LATENT, ({ latent }) => choose("latent", Number(latent)));

  function show() {
    const state = Object.fromEntries(TRAITS.map((trait) => [trait, model.get(trait)]));
    message.textContent = state.message;
    all.setAttribute("aria-pressed", state.latent < 0);
    for (const [order, drawn] of orders) drawn.setAttribute("aria-pressed", order === state.order);
    sorting.hidden = state.tokens[state.token] === undefined;
    parts.legend.replaceChildren(...legend(state).map((node) => draw(node)));
    redraw(parts.strip, strip(state), TOKEN);
    redraw(parts.rows, rows(state), LATENT);
    redraw(parts.card, card(state), LATENT);
  }
  const changes = TRAITS.map((trait) => `change:${trait}`).join(" ");
  model.on(changes, show);
  show();
  return () => model.off(changes, show);
}

export default { render };
