"""The site as a reader without network, kernel or mouse meets it: front page, pictures, pages, widgets, contrast."""

import base64
import re

import nbformat
import plotly.graph_objects as go
import pytest
from browser import Browser, driver, screenshot
from playwright.sync_api import expect

from mi_utils import claims, exercises, pages, runs
from mi_utils.widgets import PromptView

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
FAINT = """() => {
    const rgb = (text) => text.match(/[0-9.]+/g).map(Number);
    const part = (c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    const luminance = ([r, g, b]) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
    const behind = (node) => {
        for (; node; node = node.parentElement) {
            const colour = rgb(getComputedStyle(node).backgroundColor);
            if (colour.length < 4 || colour[3] === 1) return colour;
        }
        return [255, 255, 255];
    };
    const found = new Set();
    const walker = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
    for (let text = walker.nextNode(); text; text = walker.nextNode()) {
        const node = text.parentElement, style = getComputedStyle(node);
        if (!text.data.trim() || node.closest("script, style, svg, .mi-figure") || !node.offsetParent) continue;
        const [a, b] = [luminance(rgb(style.color)), luminance(behind(node))].sort((x, y) => y - x);
        const size = parseFloat(style.fontSize), bold = parseInt(style.fontWeight) >= 700;
        const enough = size >= 24 || (bold && size >= 18.66) ? 3 : 4.5;
        const contrast = (a + 0.05) / (b + 0.05);
        if (contrast < enough) found.add(`${text.data.trim().slice(0, 30)}: ${contrast.toFixed(2)} (${style.color})`);
    }
    return [...found];
}"""


def executed(view):
    """A notebook as it is after a run: prose, a figure, a widget with its twin, a prediction, claims, an error."""
    table = claims.ClaimTable("01_good")
    table.add("It holds", value=1.0, control=0.0, interval=(0.9, 1.1), kind="planted")
    table.add("It is open", value=0.0, control=0.0, interval=(-1.0, 1.0))
    table.add("It does not", value=0.0, control=1.0, interval=(-1.1, -0.9))
    guess = exercises.Prediction("Which?", ["left", "right"])
    figure = go.Figure(go.Scatter(y=[1, 2]))
    shown = [
        {pages.PLOTLY: figure.to_plotly_json(), "text/plain": "a figure"},
        view._repr_mimebundle_()[0],
        {"text/html": exercises._choices_html(guess)},
        {"text/html": guess.reveal("left")._repr_html_() + exercises.hint("one", "two")._repr_html_()},
        {"text/plain": "plain text"},
        table.table()._repr_mimebundle_(),
    ]
    cells = [nbformat.v4.new_markdown_cell("# Is $x^2$ drawn?\n\nProse with `code`.")]
    for bundle in shown:
        source = "# a comment\nfor x in range(3):\n    print(f'{x}', None, 1.5)"
        cells.append(nbformat.v4.new_code_cell(source, outputs=[nbformat.v4.new_output("display_data", bundle)]))
    notebook = nbformat.v4.new_notebook(cells=cells)
    return notebook, [claim.record() for claim in table.claims]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    view = PromptView()
    view.show(["The", " cat"], [[3], [4]], [[1.0], [2.0]], [[2.0], [5.0]], {3: "any word"})
    notebook, records = executed(view)
    cost = {"finished": "2026-01-01T00:00:00+00:00", "machine": "here"}
    good = runs.Run("01_good", "Is it drawn?", "full", 100.0, 2_000_000_000, **cost, claims=records)
    bad = runs.Run("02_bad", "Does it fail?", "full", 1500.0, 7_000_000_000, **cost, failure="cell [1] `x`: E: no")
    for run in (good, bad):
        pages.write_notebook_page(notebook, run, folder / f"{run.notebook}.html")
    (folder / "pictures").mkdir()
    (folder / "pictures" / "01_good.png").write_bytes(PIXEL)
    pages.write_index([good, bad], folder, folder / "pictures")
    (folder / "pictures" / "01_good.png").unlink()  # the page holds it
    return folder


@pytest.fixture(scope="module")
def browser():
    with driver() as playwright, Browser(playwright) as browser:
        yield browser


def test_the_front_page_shows_question_picture_costs_and_verdicts(site, browser):
    page = browser.open((site / "index.html").as_uri())
    first = page.locator("section").first
    expect(first.locator("h2")).to_have_text("Is it drawn?")
    assert first.locator("img").evaluate("image => image.complete && image.naturalWidth") == 1
    for verdict in ("holds", "undecided", "does not hold"):
        expect(first.get_by_text(verdict, exact=True)).to_be_visible()
    costs = page.locator("td.number span").all_inner_texts()
    assert costs[:4] == ["1.7", "2.0 GB", "25.0", "7.0 GB"]
    assert page.locator("span.mi-over").all_inner_texts() == ["25.0", "7.0 GB", "26.7", "7.0 GB"]
    expect(page.locator("table").first).to_contain_text("cell [1] `x`: E: no")
    screenshot(page, "front-page")
    browser.assert_harmless()


def test_everything_is_reached_by_key_and_works_without_kernel_and_network(site, browser):
    page = browser.open((site / "index.html").as_uri())
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_url("**/01_good.html")
    page.wait_for_selector(".mi-figure .main-svg")
    token = page.locator(".mi-widget .mi-token").nth(1) if page.locator(".mi-token").count() else None
    token = token or page.locator(".mi-widget [role=button], .mi-widget button").filter(has_text="cat").first
    token.focus()
    page.keyboard.press("Enter")
    expect(page.locator(".mi-widget .mi-rows h4")).to_contain_text("Token 1")
    page.locator("summary").first.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_text("one", exact=True)).to_be_visible()
    page.get_by_role("link", name="All notebooks").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/index.html")
    browser.assert_harmless()


@pytest.mark.parametrize("width", [1280, 700])
def test_nothing_sticks_out(site, browser, width):
    for path in sorted(site.glob("*.html")):
        page = browser.open(path.as_uri(), width=width)
        page.wait_for_load_state()
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path.name
        page.close()


@pytest.mark.parametrize("name", ["index", "01_good", "02_bad"])
def test_every_text_stands_out_from_its_background(site, browser, name):
    page = browser.open((site / f"{name}.html").as_uri())
    assert page.evaluate(FAINT) == []
    page.close()


def test_every_page_names_its_language_and_every_picture_what_it_is(site, browser):
    for path in sorted(site.glob("*.html")):
        page = browser.open(path.as_uri())
        assert page.locator("html").get_attribute("lang") == "en"
        assert page.title()
        assert page.locator("img:not([alt]), img[alt='']").count() == 0
        assert page.locator("h1").count() == 1
        page.close()


def test_the_site_names_no_other_machine(site):
    for path in site.glob("*.html"):
        named = set(re.findall(r"https?://[^\s\"'<]+", path.read_text(encoding="utf8")))
        assert named <= {"http://www.w3.org/2000/svg"}, path.name  # the name of a kind of element, never fetched
