"""Notebooks run in clean kernels without the network, failures are named, and the pages need no network."""

import json
import os
import shutil
import signal
import threading
import time

import nbformat
import pytest

from mi_utils import claims, pages, pairs, runner, runs

GOOD = """# %% [markdown]
# # Does $x^2$ work?

# %% tags=["parameters"]
FAST = False
N = 3 if FAST else 300

# %%
from pathlib import Path
from mi_utils import claims, theme
theme.apply()
print(N, Path.cwd().name)

# %%
import plotly.graph_objects as go
go.Figure(go.Scatter(y=[1, 2], name="</script><b>bold"))

# %%
table = claims.ClaimTable("01_good")
table.add("a planted claim", value=1.0, control=0.0, interval=(0.9, 1.1), kind="planted")
table.add("a real claim", value=0.0, control=0.0, interval=(-1.0, 1.0))
table.table()
"""

BAD = """# %% [markdown]
# # Does it fail?

# %%
print("kept")

# %%
# the failing cell
1 / 0

# %%
print("never reached")
"""

REACHES_OUT = """# %%
import socket, urllib.request
try:  # a library that keeps quiet about it
    urllib.request.urlopen("http://quiet.example")
except OSError:
    pass

# %%
socket.create_connection(("192.0.2.1", 443))
"""

DIES = """# %%
import os, signal
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """All of the above executed into one site, in the fast tier where there is one."""
    folder = tmp_path_factory.mktemp("notebooks")
    sources = {"01_good": GOOD, "02_bad": BAD, "03_reaches_out": REACHES_OUT, "04_dies": DIES}
    for name, source in sources.items():
        (folder / "src").mkdir(exist_ok=True)
        (folder / "src" / f"{name}.py").write_text(source)
    for text, notebook in pairs.find_pairs(folder).items():
        pairs.sync(text, notebook)
    good, *others = runner.find_notebooks(folder)
    runner.run_notebooks([good], folder / "site", fast=True)
    runner.run_notebooks(others, folder / "site")
    return folder / "site"


@pytest.fixture(scope="module")
def recorded(site):
    return {run.notebook: run for run in runs.load_runs(site)}


def test_every_notebook_is_on_record_whatever_happened_to_the_others(recorded):
    assert list(recorded) == ["01_good", "02_bad", "03_reaches_out", "04_dies"]
    assert [name for name, run in recorded.items() if run.failure] == ["02_bad", "03_reaches_out", "04_dies"]


def test_a_good_run_has_its_costs_and_claims(recorded, site):
    run = recorded["01_good"]
    assert (run.tier, run.refused, run.title) == ("fast", [], "Does $x^2$ work?")
    assert 20e6 < run.peak_bytes < 2e9
    assert 0.5 < run.seconds < 300
    assert run.verdict_counts() == "1 holds, 1 undecided"
    assert run.broken_controls() == []
    assert json.loads((site / "claims" / "01_good.json").read_text()) == run.claims


def test_the_fast_tier_reaches_derived_sizes_and_the_working_folder_is_the_notebooks(site):
    notebook = nbformat.read(site / "executed" / "01_good.ipynb", as_version=4)
    assert notebook.cells[2].outputs[0].text == f"3 {site.parent.name}\n"


def test_a_failure_names_cell_and_error_and_keeps_what_was_done(recorded, site):
    assert recorded["02_bad"].failure == "cell [2] `# the failing cell`: ZeroDivisionError: division by zero"
    page = (site / "02_bad.html").read_text()
    assert "This run failed" in page
    assert "<pre>kept\n" in page
    notebook = nbformat.read(site / "executed" / "02_bad.ipynb", as_version=4)
    assert notebook.cells[1].outputs[0].text == "kept\n"
    assert notebook.cells[3].execution_count is None


def test_a_network_attempt_fails_and_even_a_quiet_one_is_recorded(recorded):
    run = recorded["03_reaches_out"]
    assert run.failure.startswith('cell [2] `socket.create_connection(("192.0.2.1", 443))`: NetworkRefusedError')
    assert run.refused == ["quiet.example:80", "192.0.2.1:443"]


def test_a_kernel_that_dies_is_a_failure_of_its_cell(recorded):
    assert (
        recorded["04_dies"].failure
        == "cell [1] `import os, signal`: Kernel died. A kernel often dies for lack of memory"
    )


def test_a_planted_claim_that_does_not_hold_is_broken(recorded):
    claim = recorded["01_good"].claims[0] | {"verdict": "undecided"}
    run = runs.Run(**vars(recorded["01_good"]) | {"claims": [claim]})
    assert run.broken_controls() == ["a planted claim"]


def test_the_front_page_links_every_notebook_and_lists_claims(site):
    page = (site / "index.html").read_text()
    for name in ("01_good", "02_bad", "03_reaches_out", "04_dies"):
        assert f'href="{name}.html"' in page
    assert "a real claim" in page
    assert "ZeroDivisionError" in page


def test_the_pages_name_no_other_machine(site):
    for path in site.glob("*.html"):
        assert "http" not in path.read_text().replace("http://quiet.example", "")


def test_no_string_of_a_figure_can_end_its_script(site):
    page = (site / "01_good.html").read_text()
    assert "\\u003c/script>\\u003cb>bold" in page


@pytest.mark.skipif(not shutil.which("chromium"), reason="no Chromium here: apt-get install chromium")
def test_figures_and_formulas_are_drawn_in_a_browser_that_reaches_nothing(site):
    from playwright.sync_api import sync_playwright

    asked, errors = [], []
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto((site / "01_good.html").as_uri())
        page.wait_for_selector(".mi-figure .main-svg")
        titles = page.locator(".modebar-btn").evaluate_all("buttons => buttons.map(b => b.dataset.title)")
        formula = page.locator("h1 math").bounding_box()
        browser.close()
    assert not errors
    assert all(url.startswith(("file:", "data:", "blob:")) for url in asked)
    assert "Zoom" in titles
    assert not any("hare" in title for title in titles)
    assert formula["height"] > 10


def write_notebook(path, *sources):
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources]), path)


def test_a_cell_that_hangs_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "CELL_TIMEOUT", 2)
    write_notebook(tmp_path / "01_hangs.ipynb", "import time", "time.sleep(60)")
    _, run = runner.execute(tmp_path / "01_hangs.ipynb")
    assert run.failure == "cell [2] `time.sleep(60)`: not done after 2 seconds"


@pytest.fixture
def interruptible():
    """A job started in the background ignores interrupts, and so would everything it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_ends_the_series_and_keeps_what_was_done(tmp_path):
    write_notebook(tmp_path / "01_slow.ipynb", "print('done')", "open('started', 'w'); import time; time.sleep(60)")
    write_notebook(tmp_path / "02_next.ipynb", "pass")

    def interrupt_once_started():
        while not (tmp_path / "started").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt_once_started, daemon=True).start()
    (run,) = runner.run_notebooks(runner.find_notebooks(tmp_path), tmp_path / "site")
    assert run.failure == runner.INTERRUPTED
    assert run.seconds < 50
    assert "<pre>done\n" in (tmp_path / "site" / "01_slow.html").read_text()


def notebook_with(*sources, tags=("parameters",)):
    cells = [nbformat.v4.new_code_cell(source, metadata={"tags": list(tags)}) for source in sources]
    return nbformat.v4.new_notebook(cells=cells)


def test_set_fast_replaces_the_one_line():
    notebook = notebook_with("SEED = 0\nFAST = False\nN = 1 if FAST else 2\nFASTER = FAST")
    runner.set_fast(notebook)
    assert notebook.cells[0].source == "SEED = 0\nFAST = True\nN = 1 if FAST else 2\nFASTER = FAST"


@pytest.mark.parametrize(
    "notebook",
    [
        notebook_with("FAST = True"),
        notebook_with("FAST = False", "FAST = False"),
        notebook_with("FAST = False\nFAST = False"),
        notebook_with("FAST = False", tags=()),
    ],
)
def test_set_fast_refuses_a_notebook_without_exactly_one_line(notebook):
    with pytest.raises(ValueError, match="a notebook needs one such cell"):
        runner.set_fast(notebook)


def test_a_selection_without_a_match_lists_what_there_is(tmp_path):
    (tmp_path / "01_one.ipynb").touch()
    (tmp_path / "notes.ipynb").touch()
    assert runner.find_notebooks(tmp_path) == runner.find_notebooks(tmp_path, "01") == [tmp_path / "01_one.ipynb"]
    with pytest.raises(ValueError, match="starts with '7'; there are: 01_one"):
        runner.find_notebooks(tmp_path, "7")


def test_a_claim_shown_twice_counts_once_as_it_was_last():
    def showing(verdict):
        data = {claims.MIME: {"claims": [{"text": "a", "verdict": verdict}, {"text": verdict}]}}
        output = nbformat.v4.new_output("display_data", data)
        return nbformat.v4.new_code_cell(outputs=[output])

    notebook = nbformat.v4.new_notebook(cells=[showing("undecided"), nbformat.v4.new_code_cell(), showing("holds")])
    records = runner.collect_claims(notebook)
    assert records == [{"text": "a", "verdict": "holds"}, {"text": "undecided"}, {"text": "holds"}]


def test_formulas_become_mathml():
    assert "<mfrac>" in pages.mathml(r"\frac{a}{b}", block=False)
    assert "<mtable" in pages.mathml(r"\begin{aligned} a &= b \end{aligned}", block=True)
    html = pages.markdown_html("Let $x < y$ be, or\n\n$$\\hat x$$\n\n`$not$`")
    assert html.count("<math") == 2
    assert "<code>$not$</code>" in html


@pytest.mark.parametrize("formula", [r"\notacommand{x}", r"\frac{a"])
def test_a_formula_that_cannot_be_drawn_is_an_error_and_stays_readable(formula):
    with pytest.raises(ValueError, match="cannot draw"):
        pages.mathml(formula, block=False)
    assert formula in pages.markdown_html(f"${formula}$")


def test_a_pair_goes_the_way_of_the_newer_file(tmp_path):
    text, notebook = tmp_path / "src" / "01_a.py", tmp_path / "01_a.ipynb"
    text.parent.mkdir()
    text.write_text(GOOD)
    assert pairs.sync(text, notebook) == "wrote 01_a.ipynb"
    first = notebook.read_bytes()
    assert pairs.sync(text, notebook) is None
    edited = nbformat.read(notebook, as_version=4)
    edited.cells[2].source = "print('edited in the notebook')"
    edited.cells[2].outputs = [nbformat.v4.new_output("stream", text="x")]
    nbformat.write(edited, notebook)
    assert not pairs.is_in_step(text, notebook)
    assert pairs.sync(text, notebook) == "wrote 01_a.py"
    assert "edited in the notebook" in text.read_text()
    assert nbformat.read(notebook, as_version=4).cells[2].outputs == []
    text.write_text(GOOD)
    assert pairs.sync(text, notebook) == "wrote 01_a.ipynb"
    assert notebook.read_bytes() == first
