"""The causal-trace map on the real model, in JupyterLab, as a person would use it."""

import time

import pytest
from browser import lab_with, screenshot
from playwright.sync_api import expect

SETUP = """
    import mi_utils as mi
    model = mi.models.load_model()
"""
CELL = 'mi.trace_map.trace_map(model, "The city of Stockton, which is in the state of", "Stockton")'
SLOWEST = 120.0
"""Seconds from a press of the button to a complete map that fail the test: our aim is 10 on a quiet machine."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with lab_with(tmp_path_factory.mktemp("trace_map"), SETUP, CELL) as lab:
        yield lab


@pytest.fixture
def view(lab):
    return lab.cell(1).locator(".mi-widget").first


def test_a_click_on_a_cell_shows_the_next_token_after_its_patch(lab, view):
    expect(view).to_contain_text("100%", timeout=1000 * SLOWEST)
    screenshot(lab.page, "trace_map_first")
    view.locator("[data-token='4'][data-row='10']").click()
    expect(view.locator("h4")).to_contain_text("at layer 10", timeout=1000 * SLOWEST)
    expect(view.locator(".mi-table")).to_contain_text("California")
    screenshot(lab.page, "trace_map_clicked")
    lab.assert_legible()
    lab.assert_harmless()


def test_another_prompt_is_traced_while_the_map_grows(lab, view):
    lab.cell(1).get_by_label("prompt", exact=True).fill("Paris is a city in the country of")
    lab.cell(1).get_by_label("subject", exact=True).fill("Paris")
    lab.cell(1).get_by_label("instead", exact=True).fill("Rome")
    start = time.perf_counter()
    lab.cell(1).get_by_role("button", name="trace").click()
    expect(view).to_contain_text("“Rome” instead", timeout=1000 * SLOWEST)
    expect(view).to_contain_text("100%", timeout=1000 * SLOWEST)
    print(f"eight tokens, another subject: {time.perf_counter() - start:.1f} s")
    screenshot(lab.page, "trace_map_instead")
    lab.assert_harmless()


def test_a_missing_subject_is_told_and_a_hostile_prompt_is_text(lab, view):
    lab.cell(1).get_by_label("subject", exact=True).fill("London")
    lab.cell(1).get_by_role("button", name="trace").click()
    expect(view.locator("[role=status]").first).to_contain_text("does not occur", timeout=1000 * SLOWEST)
    lab.cell(1).get_by_label("instead", exact=True).fill("")
    lab.cell(1).get_by_label("prompt", exact=True).fill("<img src=x onerror=alert(1)> in London is")
    lab.cell(1).get_by_role("button", name="trace").click()
    expect(view.locator("svg")).to_contain_text("img", timeout=1000 * SLOWEST)
    lab.assert_harmless()
