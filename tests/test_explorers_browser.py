"""The explorers on the real model and the widest shipped dictionary, as a person in JupyterLab would use them."""

import json
import shutil

import numpy as np
import pytest
from browser import Lab, driver, screenshot, write_notebook
from playwright.sync_api import expect

from mi_utils import sae

NAME = "resid12_18432"
SENTENCE = "the quick brown fox jumps over a lazy dog while old cats sleep near warm stoves in quiet little houses"
WORDS = SENTENCE.split()
HOSTILE = '<img src=x onerror="window.hacked=1;alert(1)"></script><script>window.hacked=1</script> \u202egnp 👩‍🔬'
SLOWEST = 1.5
"""Seconds at the 95th percentile that fail the test: our aim is 0.3 on a quiet machine, CI is not one."""

SETUP = """
    import mi_utils as mi
    model = mi.models.load_model()
    dictionary = mi.sae.load("{folder}")
    index = mi.latents.LatentIndex("{folder}/index", model.tokenizer, dictionary)
    text = mi.corpus.contexts(mi.corpus.split_held_out(mi.corpus.load_corpus(["recipes"])).held_out, model.tokenizer)
    observed = mi.explanations.observe(model, dictionary, text.tokens[:16], index.about["hook_name"])
    latent = int(index.find_density(0.001, 0.01).index[0])
"""
CELLS = [
    "mi.explorers.prompt_explorer(model, dictionary, index, 'The Eiffel Tower is in Paris.')",
    "mi.explorers.latent_browser(index, model, dictionary)",
    "mi.explorers.explanation_quiz(mi.explanations.quiz(index, observed, latent), index)",
    "index.card(latent)",
]

TIME_TO_DRAW = """([box, strip, prompt]) => new Promise(resolve => {
    const start = performance.now();
    const watcher = new MutationObserver(() => { watcher.disconnect(); resolve(performance.now() - start); });
    watcher.observe(strip, {childList: true, subtree: true});
    box.value = prompt;
    box.dispatchEvent(new Event('input', {bubbles: true}));
    box.dispatchEvent(new Event('change', {bubbles: true}));
})"""


@pytest.fixture(scope="module")
def playwright():
    with driver() as playwright:
        yield playwright


@pytest.fixture(scope="module")
def lab(playwright, tmp_path_factory):
    folder = tmp_path_factory.mktemp("explorers")
    shutil.copytree(sae.shipped()[NAME], folder / NAME)  # notes that the test takes must not land in data/
    path = write_notebook(folder / "explorers.ipynb", SETUP.format(folder=folder / NAME), *CELLS)
    with Lab(playwright, path) as lab:
        lab.run_all()
        lab.folder = folder / NAME
        yield lab


def test_a_prompt_becomes_a_heat_map_and_leads_to_a_card(lab):
    view = lab.cell(1)
    tokens = view.locator(".mi-strip .mi-tok")
    expect(tokens.filter(has_text="Paris")).to_be_visible()
    tokens.filter(has_text="Paris").click()
    row = view.locator(".mi-row[data-latent]").nth(1)
    latent = row.get_attribute("data-latent")
    row.click()
    expect(view.locator(".mi-card h3")).to_have_text(f"latent {latent}")
    expect(view.locator(".mi-card .mi-snippet").first).to_be_visible()
    screenshot(lab.page, "explorers_prompt")
    lab.assert_legible()
    lab.assert_harmless()


def test_typing_to_heat_map_is_quick(lab):
    view = lab.cell(1)
    box, strip = view.locator("input[type=text]").element_handle(), view.locator(".mi-strip").element_handle()
    rng, milliseconds = np.random.default_rng(0), []
    for _ in range(20):
        prompt = " ".join(rng.permutation(WORDS).tolist())
        milliseconds.append(lab.page.evaluate(TIME_TO_DRAW, [box, strip, prompt]))
    slow = float(np.quantile(milliseconds[1:], 0.95))
    print(f"{len(WORDS)} words to heat map: median {np.median(milliseconds):.0f} ms, 95th percentile {slow:.0f} ms")
    assert slow < 1000 * SLOWEST


def test_hostile_empty_and_long_prompts_are_text_or_refused(lab):
    view, box = lab.cell(1), lab.cell(1).locator("input[type=text]")
    box.fill(HOSTILE)
    box.press("Enter")
    expect(view.locator(".mi-strip")).to_contain_text("onerror")
    for prompt, complaint in (("", "0 tokens"), ("word " * 500, "expected 1 to 127")):
        box.fill(prompt)
        box.press("Enter")
        expect(view.locator("[role=status]").first).to_contain_text(complaint)
    box.fill("x" * 100)
    box.press("Enter")
    expect(view.locator("[role=status]").first).to_be_empty()
    assert lab.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    lab.assert_harmless()


def test_the_browser_searches_shows_and_keeps_a_label(lab):
    cell = lab.cell(2)
    by = cell.locator("select")
    query = cell.locator("input[type=text]").first
    by.select_option("token, as in ' Paris'")
    query.fill("' the'")
    query.press("Enter")
    row = cell.locator("tr[data-latent]").first
    expect(cell.locator("th").filter(has_text="share")).to_be_visible()
    latent = row.get_attribute("data-latent")
    row.click()
    expect(cell.locator(".mi-card h3")).to_have_text(f"latent {latent}")
    label = cell.get_by_label("label")
    label.fill(HOSTILE)
    label.press("Enter")
    cell.get_by_role("button", name="save").click()
    expect(cell.locator(".mi-card-head")).to_contain_text("onerror")
    assert json.loads((lab.folder / "index" / "notes.json").read_text())[latent]["label"] == HOSTILE
    by.select_option("latent number")
    query.fill("999999")
    query.press("Enter")
    expect(cell.locator("[role=status]").first).to_contain_text("no latent 999999")
    screenshot(lab.page, "explorers_browser")
    lab.assert_legible()
    lab.assert_harmless()


def test_the_quiz_is_marked(lab):
    cell = lab.cell(3)
    questions = cell.locator(".mi-question")
    cell.get_by_role("button", name="mark my answers").click()
    expect(cell.locator("[role=status]").first).to_contain_text("still open")
    count = questions.count()
    for number in range(count):
        answer = questions.nth(number).get_by_role("button", name="fires")
        answer.click()
        expect(answer).to_have_attribute("aria-pressed", "true")
    cell.get_by_role("button", name="mark my answers").click()
    expect(cell.locator(".mi-right, .mi-wrong")).to_have_count(count)
    expect(cell.locator(".mi-fact").filter(has_text="right").first).to_contain_text("0.50")  # always yes is guessing
    cell.get_by_label("it means").fill("everything")
    cell.get_by_label("it means").press("Enter")
    cell.get_by_role("button", name="keep as label").click()
    expect(cell.locator("[role=status]").first).to_contain_text("kept as the label")
    screenshot(lab.page, "explorers_quiz")
    lab.assert_legible()
    lab.assert_harmless()


def test_a_card_alone_is_plain_html(lab):
    expect(lab.cell(4).locator(".mi-card .mi-hist")).to_be_visible()
    expect(lab.cell(4).locator(".mi-card h4").filter(has_text="lower quarter")).to_be_visible()
