"""What holds the repository together: pins, import directions, notebook pairs, and prose without typed results."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mi_utils import pages, pairs, runner

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "mi_utils"

# fmt: off
ORDER = [
    "files", "artefacts", "metrics", "theme", "offline", "claims", "exercises", "session",
    "models", "hooks", "corpus", "stores", "activations", "peers", "sae", "training", "cluster",
    "evaluation", "absorption",
    "sparse_coding", "meta", "stitching", "families", "worlds",
    "concepts", "directions", "steering", "dosing", "circles", "language_worlds", "probes", "probing", "cue_worlds",
    "behaviours", "finetuning", "paired_activations", "crosscoders", "diffing", "pair_worlds", "lenses", "restoring",
    "facts", "patching", "attribution", "paths", "tracing", "recall_worlds",
    "edits", "rome", "editing", "auditing", "fact_worlds", "scoreboards",
    "class_probes", "memorisers", "fact_finding", "effective_models", "extraction", "name_facts", "name_neurons",
    "othello_games", "othello_training", "othello_model", "othello_probes", "othello_worlds", "othello_editing",
    "othello_features",
    "plots",
    "markup", "cards", "latents", "indexing", "explanations", "widgets", "explorers", "meta_explorer",
    "steering_console", "diff_explorer", "trace_map", "edit_auditor", "neuron_explorer", "othello_board",
    "runs", "pages", "pairs", "runner", "readiness", "__main__",
]
# fmt: on
"""The modules, bottom layer first: each may import only those before it."""

PAIRS = pairs.find_pairs(ROOT / "notebooks")
NOTEBOOKS = runner.find_notebooks(ROOT / "notebooks")
LONGEST_CELL = 25

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DIRECT = [Requirement(line) for line in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]]
PINS = [
    Requirement(line)
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line.strip() and not line.startswith("#")
]


def pins_of(name):
    return [pin for pin in PINS if canonicalize_name(pin.name) == canonicalize_name(name)]


@pytest.mark.parametrize("requirement", DIRECT, ids=lambda requirement: requirement.name)
def test_every_direct_requirement_is_pinned_within_its_bounds(requirement):
    pins = pins_of(requirement.name)
    assert pins, f"constraints.txt has no pin for {requirement.name}"
    for pin in pins:
        (specifier,) = pin.specifier
        assert requirement.specifier.contains(specifier.version), f"{pin} is outside of {requirement}"


def test_every_pin_is_one_exact_version_and_names_no_address():
    assert [pin for pin in PINS if pin.url or [specifier.operator for specifier in pin.specifier] != ["=="]] == []


def test_environment_yml_adds_nothing_of_its_own():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, through_pip = environment["dependencies"]
    assert (pip, through_pip) == ("pip", {"pip": ["-e .[dev]"]})
    version = python.removeprefix("python=")
    assert f"{version}.0" in Requirement(f"python{PROJECT['requires-python']}").specifier


def imported(tree):
    """Names of our own modules that a parsed file imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "mi_utils":
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mi_utils."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (name.name.split(".")[1] for name in node.names if name.name.startswith("mi_utils."))


MODULES = sorted(path for path in PACKAGE.glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_module_imports_only_modules_below_it(path):
    assert path.stem in ORDER, f"give {path.stem} its place in ORDER"
    below = {*ORDER[: ORDER.index(path.stem)], path.stem}
    above = set(imported(ast.parse(path.read_text()))) - below
    assert not above, f"{path.stem} imports {sorted(above)}, which lie above it"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_annotations_are_real_so_that_shapes_are_checked(path):
    assert "from __future__ import annotations" not in path.read_text()


def test_importing_the_package_is_cheap():
    heavy = ["torch", "transformers", "transformer_lens", "sae_lens", "datasets", "plotly", "pandas", "IPython"]
    code = f"import time; t = time.perf_counter(); import mi_utils; t = time.perf_counter() - t; import sys; \
print(t, [name for name in {heavy} if name in sys.modules])"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    assert all(run.stdout.strip().endswith(" []") for run in runs), runs[0].stdout
    assert min(float(run.stdout.split()[0]) for run in runs) <= 0.3


TEXT_FILES = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split("\n")
PRIVATE = re.compile(r"(?<![\w.])/(?:home|root|Users|work)/\w")


@pytest.mark.skipif(not any(TEXT_FILES), reason="not a git checkout: nothing says which files belong")
def test_no_file_names_a_path_of_one_machine():
    kinds = (".py", ".md", ".toml", ".yml", ".txt", ".ipynb", ".json", "lab", "run")
    readable = [name for name in TEXT_FILES if name.endswith(kinds) and (ROOT / name).exists()]
    found = [name for name in readable if PRIVATE.search((ROOT / name).read_text(encoding="utf8"))]
    assert found == []


def test_every_notebook_has_a_text_pair_and_the_other_way_round():
    assert sorted(PAIRS.values()) == NOTEBOOKS


@pytest.mark.parametrize("place", ["README.md", "notebooks/src/00_start_here.py", "notebooks/TEACHING.md"])
def test_maps_of_the_whole_have_every_question_as_its_notebook_asks_it(place):
    text = (ROOT / place).read_text(encoding="utf8")
    for notebook in NOTEBOOKS[1:]:
        question = pages.first_heading(nbformat.read(notebook, as_version=4))
        assert re.search(rf"{notebook.stem[:2]}[^\n]*{re.escape(question)}", text), question


@pytest.mark.parametrize(("text", "notebook"), PAIRS.items(), ids=[path.stem for path in PAIRS])
class TestNotebook:
    def test_is_in_step_with_its_text_pair(self, text, notebook):
        assert pairs.is_in_step(text, notebook), "run ./lab sync"

    def test_is_stored_without_outputs_and_with_its_kernel(self, text, notebook):
        stored = nbformat.read(notebook, as_version=4)
        nbformat.validate(stored)
        assert stored.metadata == pairs.HEADER, "run ./lab sync"
        code = [cell for cell in stored.cells if cell.cell_type == "code"]
        assert all(not cell.outputs and cell.execution_count is None for cell in code), "run ./lab sync"

    def test_can_be_run_in_the_fast_tier(self, text, notebook):
        runner.set_fast(pairs.build(text))

    def test_asks_a_question(self, text, notebook):
        assert pages.first_heading(pairs.build(text)).endswith("?")

    def test_has_cells_that_fit_on_a_projector(self, text, notebook):
        code = [cell.source for cell in pairs.build(text).cells if cell.cell_type == "code"]
        too_long = [source.split("\n")[0] for source in code if source.count("\n") >= LONGEST_CELL]
        assert not too_long, f"cells of more than {LONGEST_CELL} lines"

    def test_types_no_result_into_its_prose(self, text, notebook):
        prose = [cell.source for cell in pairs.build(text).cells if cell.cell_type == "markdown"]
        found = [number for source in prose for number in typed_results(source)]
        assert not found, "let code print these: prose must stay true when a parameter moves"

    def test_has_only_formulas_that_its_page_can_draw(self, text, notebook):
        prose = "\n\n".join(cell.source for cell in pairs.build(text).cells if cell.cell_type == "markdown")
        for block, inline in re.findall(r"\$\$(.+?)\$\$|\$([^$\n]+)\$", re.sub(r"`[^`]*`", "", prose), re.DOTALL):
            pages.mathml(block or inline, block=bool(block))


NOT_PROSE = re.compile(
    r"```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$\n]+\$|\[[^]]*\]\([^)]*\)|arXiv:\S+|https?://\S+", re.DOTALL
)
RESULT = re.compile(r"\d+\.\d+|\d+ ?%|\d+ ?×")


def typed_results(markdown):
    """Decimal numbers, percentages and multiples in prose; code, formulas, links and the list of sources may have them.

    Whole numbers are left alone: they count layers, minutes and steps of an argument.
    """
    prose = re.split(r"^#+ Sources", markdown, flags=re.MULTILINE)[0]
    return RESULT.findall(NOT_PROSE.sub(" ", prose))


@pytest.mark.parametrize(
    ("markdown", "found"),
    [
        ("The loss falls to 0.17 nats.", ["0.17"]),
        ("It keeps 95 % of it, 9× faster.", ["95 %", "9×"]),
        ("Layer 10 of 30, in two minutes, `k = 0.5`, $p < 0.05$, see [v1.2](https://x.y/2.0), arXiv:2309.08600.", []),
        ("A finding.\n\n## Sources\nSection 3.2", []),
    ],
)
def test_typed_results_finds_results_only(markdown, found):
    assert typed_results(markdown) == found
