"""The explorer of meta-latents on the real model, in JupyterLab, as a person would use it."""

import pytest
from browser import lab_with, screenshot
from playwright.sync_api import expect

SETUP = """
    import mi_utils as mi
    model = mi.models.load_model()
    folders = mi.sae.shipped()
    dictionaries = [mi.sae.load(folders[name]) for name in ("resid12_4608", "resid12_1152")]
    big, small = [mi.latents.shipped_index(name, model.tokenizer) for name in ("resid12_4608", "resid12_1152")]
    rows = mi.meta.unit_rows(dictionaries[0])
    sae = mi.meta.train_meta(rows, 512, 4, n_steps=60)
    decompositions = {
        "meta-SAE": mi.meta.decompose(rows, sae.W_dec, 4, sae.b_dec),
        "random twin": mi.meta.decompose(rows, mi.meta.random_rows(sae.W_dec), 4, rows.mean(0)),
    }
"""
CELL = "mi.meta_explorer.meta_explorer(model, big, decompositions, (small, dictionaries[1]))"
SLOWEST = 1.5
"""Seconds from click to picture that fail the test: our aim is 0.15 on a quiet machine, CI is not one."""

TIME_TO_DRAW = """([row, view]) => new Promise(resolve => {
    const start = performance.now();
    const watcher = new MutationObserver(() => { watcher.disconnect(); resolve(performance.now() - start); });
    watcher.observe(view, {childList: true, subtree: true});
    row.click();
})"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with lab_with(tmp_path_factory.mktemp("meta_explorer"), SETUP, CELL) as lab:
        yield lab


@pytest.fixture
def views(lab):
    """The four trees: the sum, the card, the atom, the smaller dictionary."""
    widgets = lab.cell(1).locator(".mi-widget")
    expect(widgets).to_have_count(4)
    return [widgets.nth(number) for number in range(4)]


def number_of(row, kind):
    return row.get_attribute(f"data-{kind}")


def test_clicks_lead_from_a_latent_to_atoms_members_and_small_latents(lab, views):
    parts, card, panel, near = views
    screenshot(lab.page, "meta_explorer_first")
    row = parts.locator("[data-atom]").nth(1)
    atom = number_of(row, "atom")
    row.click()
    expect(panel.locator("h3").first).to_have_text(f"meta-SAE: atom {atom}")
    expect(row).to_have_attribute("aria-pressed", "true")
    member = panel.locator(".mi-row[data-latent]:not(.mi-chosen)").first
    latent = number_of(member, "latent")
    member.focus()
    member.press("Enter")
    expect(parts.locator("h3")).to_have_text(f"latent {latent}")
    expect(card.locator("h3")).to_have_text(f"latent {latent}")
    expect(lab.cell(1).get_by_label("latent", exact=True)).to_have_value(latent)
    expect(panel.locator("h3").first).to_have_text(f"meta-SAE: atom {atom}")
    close = near.locator(".mi-row[data-latent]").first
    other = number_of(close, "latent")
    close.click()
    expect(near.locator(".mi-card h3").filter(has_text=f"latent {other} of the smaller dictionary")).to_be_visible()
    expect(card.locator("h3")).to_have_text(f"latent {latent}")
    screenshot(lab.page, "meta_explorer_near")
    lab.assert_legible()
    lab.assert_harmless()


def test_the_twin_is_one_click_away_and_keeps_the_latent(lab, views):
    parts, _, panel, _ = views
    heading = parts.locator("h3").inner_text()
    lab.cell(1).get_by_role("button", name="random twin").click()
    expect(panel.locator("h3").first).to_contain_text("random twin: atom")
    expect(parts.locator("h3")).to_have_text(heading)
    expect(parts.locator(".mi-row[data-atom]").first).to_have_attribute("aria-pressed", "true")
    screenshot(lab.page, "meta_explorer_twin")
    lab.cell(1).get_by_role("button", name="meta-SAE").click()
    expect(panel.locator("h3").first).to_contain_text("meta-SAE: atom")
    lab.assert_harmless()


def test_an_unfolded_card_leads_on_and_stays_unfolded(lab, views):
    parts, card, *_ = views
    expect(card.locator("h3")).to_be_hidden()
    card.locator("summary").click()
    chip = card.locator(".mi-chip").first
    latent = number_of(chip, "latent")
    chip.click()
    expect(parts.locator("h3")).to_have_text(f"latent {latent}")
    expect(card.locator("h3")).to_be_visible()
    card.locator("summary").click()
    expect(card.locator("h3")).to_be_hidden()
    lab.assert_harmless()


def test_a_wrong_number_is_told_and_a_right_one_shown(lab, views):
    parts, box = views[0], lab.cell(1).get_by_label("latent", exact=True)
    heading = parts.locator("h3").inner_text()
    box.fill("<img src=x onerror=alert(1)>")
    box.press("Enter")
    expect(parts.locator("[role=status]")).to_contain_text("is no number of a latent")
    expect(parts.locator("h3")).to_have_text(heading)
    box.fill("17")
    box.press("Enter")
    expect(parts.locator("h3")).to_have_text("latent 17")
    expect(parts.locator("[role=status]")).to_be_empty()
    lab.assert_harmless()


def test_an_atom_appears_quickly(lab, views):
    parts, _, panel, _ = views
    rows, milliseconds = parts.locator(".mi-row[data-atom]"), []
    for number in [*range(1, rows.count()), 0]:
        handles = [rows.nth(number).element_handle(), panel.element_handle()]
        milliseconds.append(lab.page.evaluate(TIME_TO_DRAW, handles))
    print(f"click to atom: {', '.join(f'{time:.0f}' for time in milliseconds)} ms")
    assert max(milliseconds) < 1000 * SLOWEST


BROKEN_NUMBERS = """view => [...view.querySelectorAll(".mi-row:not(.mi-row-head) > *")].filter(cell => {
    const lines = document.createRange();
    lines.selectNodeContents(cell);
    return cell.textContent.match(/^[\\d.e%-]+$/) && new Set([...lines.getClientRects()].map(r => r.top)).size > 1;
}).map(cell => cell.textContent)"""
"""Numbers in rows that take more than a line."""


@pytest.mark.parametrize("width", [1280, 1000])
def test_everything_has_room(lab, views, width):
    parts, _, _, near = views
    near.locator(".mi-row[data-latent]").first.click()
    expect(near.locator(".mi-card")).to_have_count(2)
    lab.page.set_viewport_size({"width": width, "height": 2400})
    for view in views:
        assert view.evaluate("view => view.scrollWidth <= view.clientWidth")
        assert view.evaluate(BROKEN_NUMBERS) == []
    parts.evaluate("view => view.scrollIntoView()")
    screenshot(lab.page, f"meta_explorer_{width}")
    lab.assert_harmless()
