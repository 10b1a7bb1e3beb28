"""The widgets in a real JupyterLab and in pages without a kernel: what readers see, click and reach by key."""

from textwrap import dedent

import nbformat
import pytest
from browser import Browser, Lab, driver, screenshot, write_notebook
from playwright.sync_api import Locator, expect

from mi_utils import pages, theme
from mi_utils.markup import element
from mi_utils.runs import Run
from mi_utils.widgets import PromptView, TreeView

BLUE = "rgba(0, 114, 178, {})"
NOTHING = "rgba(0, 0, 0, 0)"
DARKEST = BLUE.format("0.65")
HOSTILE = [
    "<img src=x onerror=\"window.hacked=1;alert('img')\">",
    "</script><script>window.hacked=1;alert('script')</script>",
    "\u202egnp.exe\u2066\u200f",
    "x" * 10_000,
    "👩‍🔬🏳️‍🌈",
    "שלום עולם",
    "'\"`${window.hacked=1}",
    "",
]

SETUP = """
    from IPython.display import display
    from mi_utils.markup import element, visible
    from mi_utils.widgets import PromptView, TreeView
"""

PROMPT = """
    def card(latent, text):
        snippet = element(
            "div", "mi-snippet", element("small", "mi-value", "9.1"),
            element("span", "mi-text", element("span", "mi-tok", "the small "),
                    element("span", {"class": "mi-tok mi-mark", "style": "background:rgba(0,114,178,0.6)"}, "cat")),
            element("small", "mi-note", "stories"))
        bars = element("div", "mi-bars", [element(
            "div", "mi-row", element("span", "mi-id", token),
            element("span", {"class": "mi-bar", "style": f"width:{width}px"}), element("span", "mi-val", "+0.42"))
            for token, width in ((" cat", 60), (" kitten", 33))])
        facts = [element("div", "mi-fact", element("small", "", name), element("b", "", value))
                 for name, value in (("fires on", "1 token in 4,096"), ("largest activation", "9.13"))]
        return element(
            "div", "mi-card",
            element("div", "mi-card-head", element("h3", "", f"Latent {latent}"), element("b", "", text)),
            element("div", "mi-facts", facts),
            element("div", "mi-columns", element("div", "mi-section", element("h4", "", "Raises"), bars),
                    element("div", "mi-section", element("h4", "", "Nearest rows (cosine)"),
                            element("span", {"class": "mi-chip", "data-latent": 4}, "4 · 0.51"))),
            element("div", "mi-section", element("h4", "", "top"), snippet, snippet))

    tokens = ["The", " cat", " sat", " on", " the", " mat", ".", "\\n", "The", " dog", " ran", "."]
    latents = [[100 + place, 3, 17] if "cat" in token else [100 + place, 3] for place, token in enumerate(tokens)]
    acts = [[1.0 + place, 8.0, 4.0][:len(active)] for place, active in enumerate(latents)]
    bits = [[6.0, 1.0, 12.0][:len(active)] for active in latents]
    latents[9], acts[9], bits[9] = [17, *range(200, 220)], [2.0, *map(float, range(1, 21))], [12.0, *[5.0] * 20]
    latents[7], acts[7], bits[7] = [], [], []
    view = PromptView()
    view.show(tokens, latents, acts, bits, {17: "small animals", 3: "any word at all"})
    view.cards = {"17": card(17, "small animals"), "4": card(4, "pets")}
    view
"""

AGAIN = "view"

TREE = """
    def picture(clicks):
        right = clicks and clicks[-1].get("answer") == "cat"
        return element(
            "div", "",
            element("div", "mi-question", element("span", "", "What does latent 17 stand for?"),
                    [element("button", {"data-row": "1", "data-answer": answer}, answer) for answer in ("cat", "dog")],
                    clicks and element("span", "mi-right" if right else "mi-wrong", "right" if right else "no")),
            element("p", "", f"{len(clicks)} clicks, last: {clicks[-1] if clicks else None}"),
            element("span", {"class": "mi-chip", "data-latent": 17}, "17"),
            element("span", {"class": "mi-chip", "data-latent": 99}, "99, which raises"))

    clicks = []
    tree = TreeView(picture(clicks))

    @tree.on_click
    def answer(clicked):
        if clicked.get("latent") == "99":
            raise KeyError("no latent 99")
        clicks.append(clicked)
        tree.tree = picture(clicks)

    tree
"""

BAD = f"""
    texts = {HOSTILE!r}
    bad = PromptView()
    bad.show(texts, [[3]] * 8, [[1.0]] * 8, [[2.0]] * 8, {{3: texts[0] + texts[1] + texts[3]}})
    bad.message = " ".join(texts)
    bad.cards = {{"3": element("div", "mi-card", [element("p", {{"title": text}}, text) for text in texts])}}
    display(bad)
    display(TreeView(element("div", "", [element("button", {{"data-answer": text}}, text) for text in texts])))
    display(PromptView())
"""

CELLS = [SETUP, PROMPT, AGAIN, TREE, BAD]


@pytest.fixture(scope="module")
def playwright():
    with driver() as playwright:
        yield playwright


@pytest.fixture(scope="module")
def lab(playwright, tmp_path_factory):
    path = write_notebook(tmp_path_factory.mktemp("lab") / "widgets.ipynb", *CELLS)
    with Lab(playwright, path) as lab:
        lab.run_all()
        yield lab
        lab.assert_harmless()


def token(view: Locator, place: int) -> Locator:
    return view.locator(f".mi-strip [data-token='{place}']")


def rows(view: Locator) -> Locator:
    return view.locator(".mi-rows .mi-row[data-latent]")


def clear(view: Locator) -> None:
    view.get_by_role("button", name="all latents").click()
    view.get_by_role("button", name="most specific first").click() if rows(view).count() else None


def check_clicks(view: Locator) -> None:
    """All that a prompt can do, by mouse, without a kernel."""
    expect(token(view, 1)).to_have_css("background-color", DARKEST)  # its 12 bits are the most of the prompt
    expect(token(view, 0)).to_have_css("background-color", BLUE.format("0.325"))
    expect(token(view, 7)).to_have_css("background-color", NOTHING)
    expect(view.locator(".mi-legend")).to_contain_text("how specific the most specific latent")
    token(view, 1).click()
    expect(rows(view)).to_have_count(3)
    assert rows(view).locator(".mi-id").all_inner_texts() == ["17", "101", "3"]
    view.get_by_role("button", name="strongest first").click()
    expect(rows(view).locator(".mi-id").first).to_have_text("3")
    assert rows(view).locator(".mi-id").all_inner_texts() == ["3", "17", "101"]

    rows(view).nth(1).click()
    expect(view.locator(".mi-legend")).to_contain_text("activation of latent 17 “small animals”")
    expect(token(view, 1)).to_have_css("background-color", DARKEST)
    expect(token(view, 9)).to_have_css("background-color", BLUE.format("0.325"))
    expect(token(view, 0)).to_have_css("background-color", NOTHING)
    expect(token(view, 9)).to_have_attribute(
        "title", "position 9:  dog\nactivation of latent 17: 2.00\n21 active latents"
    )
    expect(view.locator(".mi-card h3")).to_have_text("Latent 17")
    view.locator(".mi-card .mi-chip").click()
    expect(view.locator(".mi-card h3")).to_have_text("Latent 4")
    expect(view.locator(".mi-legend")).to_contain_text("silent on this prompt")

    token(view, 9).click()
    expect(view.locator(".mi-rows h4")).to_have_text("Token 9 “ dog”: 12 of 21 active latents")
    expect(rows(view)).to_have_count(12)
    expect(rows(view).first).to_contain_text("219")
    rows(view).first.click()
    expect(view.locator(".mi-shown")).to_have_text("No card of latent 219 is here.")
    rows(view).first.click()
    expect(view.locator(".mi-legend")).to_contain_text("how specific")
    clear(view)


def assert_fits(output: Locator) -> None:
    for box in output.evaluate_all("outputs => outputs.map(output => [output.scrollWidth, output.clientWidth])"):
        assert box[0] <= box[1]


def test_a_prompt_answers_clicks(lab):
    view = lab.cell(1).locator(".mi-widget")
    view.scroll_into_view_if_needed()
    screenshot(lab.page, "prompt-before")
    check_clicks(view)
    token(view, 1).click()
    rows(view).first.click()
    screenshot(lab.page, "prompt-clicked")
    clear(view)


def test_two_views_show_the_same_choice(lab):
    first, second = lab.cell(1).locator(".mi-widget"), lab.cell(2).locator(".mi-widget")
    token(first, 1).click()
    expect(rows(second)).to_have_count(3)
    rows(second).first.click()
    expect(first.locator(".mi-card h3")).to_have_text("Latent 17")
    assert token(first, 1).get_attribute("aria-pressed") == token(second, 1).get_attribute("aria-pressed") == "true"
    clear(second)
    expect(first.locator(".mi-card")).to_have_count(0)


def test_everything_can_be_reached_by_key_and_the_focus_stays(lab):
    view, press = lab.cell(1).locator(".mi-widget"), lab.page.keyboard.press
    token(view, 5).click()
    expect(view.locator(".mi-rows h4")).to_contain_text("Token 5")
    view.get_by_role("button", name="all latents").focus()
    press("Tab")
    expect(token(view, 5)).to_be_focused()  # the chosen token; arrow keys go from there
    for _ in range(4):
        press("ArrowLeft")
    press("Enter")
    expect(view.locator(".mi-rows h4")).to_contain_text("Token 1 ")
    expect(token(view, 1)).to_be_focused()
    for key, place in {"ArrowLeft": 0, "ArrowRight": 1, "End": 11, "Home": 0}.items():
        press(key)
        expect(token(view, place)).to_be_focused()
    press("End")
    press("Space")
    expect(view.locator(".mi-rows h4")).to_contain_text("Token 11")
    for _ in range(2):
        press("Tab")
    expect(view.get_by_role("button", name="strongest first")).to_be_focused()
    press("Space")
    expect(view.get_by_role("button", name="strongest first")).to_have_attribute("aria-pressed", "true")
    expect(view.get_by_role("button", name="strongest first")).to_be_focused()
    press("Tab")
    expect(rows(view).first).to_be_focused()
    press("ArrowDown")
    expect(rows(view).nth(1)).to_be_focused()
    press("ArrowUp")
    press("Enter")
    expect(view.locator(".mi-legend")).to_contain_text("activation of latent 111")
    expect(rows(view).first).to_be_focused()
    assert lab.page.evaluate("window.jupyterapp.shell.currentWidget.content.model.cells.length") == len(CELLS)
    clear(view)


def test_a_tree_reaches_python_and_is_drawn_again(lab):
    view = lab.cell(3).locator(".mi-widget")
    view.get_by_role("button", name="dog").click()
    expect(view).to_contain_text("1 clicks, last: {'row': '1', 'answer': 'dog', 'n': 1}")
    expect(view.locator(".mi-wrong")).to_have_text("no")
    lab.page.keyboard.press("Enter")  # the focus is still on the same answer, and the same click counts again
    expect(view).to_contain_text("2 clicks, last: {'row': '1', 'answer': 'dog', 'n': 2}")
    expect(view.get_by_role("button", name="dog")).to_be_focused()
    view.get_by_role("button", name="cat").click()
    expect(view.locator(".mi-right")).to_be_visible()
    screenshot(lab.page, "tree")
    view.get_by_text("17", exact=True).press("Space")
    expect(view).to_contain_text("4 clicks, last: {'latent': '17', 'n': 4}")
    view.get_by_text("99, which raises").click()
    expect(view.get_by_role("status")).to_have_text("KeyError: 'no latent 99'")
    view.get_by_role("button", name="cat").click()
    expect(view).to_contain_text("5 clicks")
    expect(view.locator(".mi-message")).to_be_hidden()


def test_hostile_texts_stay_texts_and_inside(lab):
    bad, tree, empty = (lab.cell(4).nth(place).locator(".mi-widget") for place in range(3))
    token(bad, 0).click()
    rows(bad).first.click()
    expect(bad.locator(".mi-card")).to_contain_text("<img src=x")
    expect(bad.get_by_role("status")).to_contain_text("</script>")
    assert token(bad, 0).inner_text() == HOSTILE[0]
    expect(empty.get_by_role("button", name="strongest first")).to_be_hidden()
    assert (token(bad, 2).inner_text(), token(bad, 7).inner_text()) == ("\\u202egnp.exe\\u2066\\u200f", "∅")
    assert tree.locator("button").all_inner_texts()[:2] == HOSTILE[:2]
    expect(empty).to_contain_text("No tokens yet.")
    assert bad.locator("img, script").count() == tree.locator("img, script").count() == 0
    assert_fits(lab.page.locator(".jp-OutputArea-output"))
    bad.get_by_role("button", name="all latents").scroll_into_view_if_needed()
    screenshot(lab.page, "hostile")


def test_both_themes_are_legible(lab):
    view = lab.cell(1).locator(".mi-widget")
    token(view, 1).click()
    rows(view).first.click()
    lab.assert_legible()
    view.evaluate("view => view.style.setProperty('--mi-soft', '#999')")
    with pytest.raises(AssertionError, match="mi-note"):
        lab.assert_legible()
    view.evaluate("view => view.style.removeProperty('--mi-soft')")
    lab.choose_theme("JupyterLab Dark")
    expect(view).to_have_css("color", "rgb(255, 255, 255)")
    expect(view.locator(".mi-card")).not_to_have_css("background-color", "rgb(255, 255, 255)")
    screenshot(lab.page, "dark")
    lab.choose_theme("JupyterLab Light")
    clear(view)


def test_a_prompt_needs_no_kernel(lab):
    """Comes last of those that share a lab."""
    lab.assert_harmless()
    lab.end_kernel()
    check_clicks(lab.cell(1).locator(".mi-widget"))
    assert lab.errors
    assert all("Could not send widget sync message" in error for error in lab.errors)
    lab.errors.clear()


@pytest.fixture
def prompt():
    scope = {}
    exec(dedent(SETUP + PROMPT), scope)
    return scope["view"]


def test_the_twin_of_a_prompt_needs_no_kernel_and_no_network(playwright, prompt, tmp_path):
    (tmp_path / "twin.html").write_text(f"<meta charset=utf8>{prompt.static_html()}{prompt.static_html()}")
    with Browser(playwright) as browser:
        page = browser.open((tmp_path / "twin.html").as_uri(), width=900)
        first, second = (page.locator(".mi-widget").nth(place) for place in range(2))
        check_clicks(first)
        expect(rows(second)).to_have_count(0)
        check_clicks(second)
        browser.assert_harmless()


def test_hostile_texts_stay_texts_in_the_twins_too(playwright, tmp_path):
    scope = {}
    exec(dedent(SETUP + BAD).replace("display(", "(shown := globals().get('shown', [])).append("), scope)
    page_text = "<meta charset=utf8>" + "".join(widget.static_html() for widget in scope["shown"])
    (tmp_path / "hostile.html").write_text(page_text, encoding="utf8")
    with Browser(playwright) as browser:
        page = browser.open((tmp_path / "hostile.html").as_uri(), width=900)
        bad = page.locator(".mi-widget").first
        token(bad, 1).click()
        rows(bad).first.click()
        expect(bad.locator(".mi-card")).to_contain_text("<img src=x")
        assert page.evaluate("document.documentElement.scrollWidth") <= 900
        screenshot(page, "hostile-twin")
        browser.assert_harmless()


def test_an_executed_page_shows_the_twin(playwright, prompt, tmp_path):
    outputs = []
    for widget in (prompt, TreeView(element("div", "mi-card", element("h3", "", "A tree")))):
        data, metadata = widget._repr_mimebundle_()
        outputs.append(nbformat.v4.new_output("display_data", data=data, metadata=metadata))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("view", outputs=outputs)])
    run = Run("01_x", "A page", "fast", 1.0, 1, "2026-01-01T00:00:00+00:00", "here")
    pages.write_notebook_page(notebook, run, tmp_path / "01_x.html")
    pages.write_index([run], tmp_path)
    with Browser(playwright) as browser:
        page = browser.open((tmp_path / "01_x.html").as_uri(), width=900)
        check_clicks(page.locator(".mi-widget").first)
        token(page.locator(".mi-widget").first, 1).click()
        rows(page.locator(".mi-widget").first).first.click()
        expect(page.locator("h3", has_text="A tree")).to_be_visible()
        assert_fits(page.locator("html, .output_area"))
        screenshot(page, "page")
        browser.assert_harmless()


@pytest.mark.parametrize("widget", [PromptView(), TreeView("text")], ids=["prompt", "tree"])
def test_a_view_that_goes_away_leaves_no_listener(playwright, widget):
    render = """async ([source, state]) => {
        const { render } = (await import(URL.createObjectURL(new Blob([source], { type: "text/javascript" })))).default;
        const listeners = new Set(), counts = [];
        const model = {
            get: (trait) => state[trait],
            on: (events, listener) => events.split(" ").forEach((event) => listeners.add([event, listener].join())),
            off: (events, listener) => events.split(" ").forEach((event) => listeners.delete([event, listener].join())),
        };
        const leave = render({ model, el: document.body });
        counts.push(listeners.size);
        leave();
        return [...counts, listeners.size];
    }"""
    state = {name: value for name, value in widget.get_state().items() if not name.startswith("_")}
    with Browser(playwright) as browser:
        before, after = browser.open("about:blank").evaluate(render, [widget._esm, state])
    assert before > 0
    assert after == 0


def test_the_harness_notices_what_must_not_happen(playwright, tmp_path):
    (tmp_path / "bad.html").write_text(
        "<script>window.hacked = 1; alert('boo'); console.error('logged'); fetch('http://quiet.example/x')</script>"
    )
    with Browser(playwright) as browser:
        page = browser.open((tmp_path / "bad.html").as_uri())
        page.wait_for_load_state("networkidle")
        assert page.evaluate("window.hacked") == 1
        assert browser.dialogs == ["boo"]
        assert browser.refused == ["http://quiet.example/x"]
        assert any("logged" in error for error in browser.errors)
        with pytest.raises(AssertionError):
            browser.assert_harmless()


def test_the_blue_is_the_palettes():
    red, green, blue = (int(theme.BLUE[place : place + 2], 16) for place in (1, 3, 5))
    assert BLUE.startswith(f"rgba({red}, {green}, {blue},")
