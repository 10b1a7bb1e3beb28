"""Executed notebooks as HTML pages that need no network: figures from a local script, formulas as MathML.

The formulas are turned into MathML here, because every current browser draws it by itself, while MathJax would
be megabytes to carry along. Made by nbconvert, with a page frame and a style of our own.
"""

import base64
import json
import re
from datetime import datetime
from functools import cache
from html import escape
from importlib.resources import files as resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from mi_utils.claims import Claim, Table
from mi_utils.files import atomic_path
from mi_utils.runs import NOTEBOOK_SECONDS, PEAK_BYTES, SUITE_SECONDS, Run

if TYPE_CHECKING:
    from nbformat import NotebookNode

PLOTLY = "application/vnd.plotly.v1+json"
WIDGET = "application/vnd.jupyter.widget-view+json"
SHOWN = ("text/html", "image/svg+xml", "image/png", "image/jpeg", "text/markdown", "text/latex", "text/plain")
"""What a page can show, best first. Scripts as outputs are not among them."""

FRONT_TITLE = "Notebooks, as executed"
FRONT_TEXT = (
    "Each notebook asks one question. Claims stand beside their control, with an interval and a verdict that may be "
    "<i>no</i>; those marked <i>planted</i> are about a world whose answer is known, and must hold."
)
WIDGET_NOTE = '<p class="mi-note">An interactive control is here when the notebook is open: ./lab open</p>'


def write_notebook_page(notebook: "NotebookNode", run: Run, path: Path) -> None:
    """Write an executed notebook as a page; one that failed says so at the top."""
    failure = f'<p class="mi-failure"><b>This run failed.</b> {escape(run.failure)}</p>' if run.failure else ""
    navigation = f'<nav><a href="index.html">All notebooks</a> · <small>{escape(_facts(run))}</small></nav>'
    _write_page(path, run.title, navigation + failure + _body(notebook))


def write_index(runs: list[Run], site: Path, pictures: Path | None = None) -> None:
    """Write the front page of `site` and the scripts its pages load: every notebook's question, costs and claims.

    Args:
        pictures: a folder with a picture `NN_topic.png` of each notebook that has one; they go into the page itself.
    """
    sections = "".join(_section(run, pictures and pictures / f"{run.notebook}.png") for run in runs)
    body = f"<h1>{FRONT_TITLE}</h1><p>{FRONT_TEXT}</p>{_runs_table(runs)}{sections}"
    _write_page(site / "index.html", FRONT_TITLE, body)
    _write_assets(site / "assets")


def mathml(formula: str, *, block: bool) -> str:
    """A TeX formula as MathML.

    Raises:
        ValueError: part of the formula was not understood; names it.
    """
    from latex2mathml.converter import convert

    braces = re.sub(r"\\.", "", formula, flags=re.DOTALL)
    if braces.count("{") != braces.count("}"):
        raise ValueError(f"cannot draw the formula {formula!r}: its braces do not match")
    formula = re.sub(r"\\(begin|end)\{aligned\}", r"\\\1{align*}", formula.strip())
    try:
        markup = convert(formula, display="block" if block else "inline")
    except Exception as error:  # the converter raises a dozen types of its own
        raise ValueError(f"cannot draw the formula {formula!r}: {type(error).__name__} {error}") from error
    if unknown := re.search(r">(\\\w+|&)<", markup):
        raise ValueError(f"cannot draw {unknown[1]!r} in the formula {formula!r}; write it in other words")
    return markup.replace(' xmlns="http://www.w3.org/1998/Math/MathML"', "")  # HTML knows the element without


def markdown_html(source: str) -> str:
    """Markdown as HTML, formulas included; one that cannot be drawn stays as it was typed."""
    return _markdown()(source)


def first_heading(notebook: "NotebookNode") -> str | None:
    """The first heading of a notebook, which is its title."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and (heading := re.search(r"^#+\s+(.+)$", cell.source, re.MULTILINE)):
            return heading[1].strip()
    return None


def _body(notebook: "NotebookNode") -> str:
    from nbconvert import HTMLExporter

    shown = notebook.copy()
    shown.cells = [_with_shown_outputs(cell) for cell in notebook.cells]
    exporter = HTMLExporter(template_name="basic", filters={"markdown2html": markdown_html})
    return exporter.from_notebook_node(shown)[0]


def _with_shown_outputs(cell: "NotebookNode") -> "NotebookNode":
    if cell.cell_type != "code":
        return cell
    cell = cell.copy()
    cell.outputs = [_shown(output) for output in cell.outputs]
    return cell


def _shown(output: "NotebookNode") -> "NotebookNode":
    """The output reduced to the one form that a page shows."""
    if "data" not in output:
        return output
    data, output = output.data, output.copy()
    best = next((kind for kind in SHOWN if kind in data), None)
    if PLOTLY in data:
        output.data = {"text/html": _figure(data[PLOTLY])}
    elif WIDGET in data and best in (None, "text/plain"):
        output.data = {"text/html": WIDGET_NOTE}
    else:
        output.data = {best: data[best]} if best else {"text/plain": "(nothing a page can show)"}
    return output


def _figure(figure: dict) -> str:
    text = json.dumps(figure, separators=(",", ":")).replace("<", "\\u003c")  # no string can end the script
    size = f"min-height:{figure.get('layout', {}).get('height', 420)}px"
    return f'<div class="mi-figure" style="{size}"><script type="application/json">{text}</script></div>'


@cache
def _markdown():
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):
        def inline_math(self, body: str) -> str:
            return _mathml_or_text(body, block=False)

        def block_math(self, body: str) -> str:
            return _mathml_or_text(body, block=True)

        def latex_environment(self, name: str, body: str) -> str:
            return _mathml_or_text(rf"\begin{{{name}}}{body}\end{{{name}}}", block=True)

    return MarkdownWithMath(renderer=Renderer(escape=False)).render


def _mathml_or_text(formula: str, *, block: bool) -> str:
    try:
        return mathml(formula, block=block)
    except ValueError:
        return f"<code>{escape(formula)}</code>"


def _runs_table(runs: list[Run]) -> str:
    rows = "".join(_runs_row(run) for run in runs)
    names = ("Notebook", "Minutes", "Peak memory", "Claims", "Executed")
    head = "".join(f"<th>{name}</th>" for name in names)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}{_sum_row(runs)}</tbody></table>"
    return f'<div class="mi-scroll">{table}</div>'


def _runs_row(run: Run) -> str:
    state = f'<b class="mi-over">failed</b><br><small>{escape(run.failure)}</small>' if run.failure else ""
    cells = [
        f'<td><a href="{escape(run.notebook)}.html">{escape(run.title)}</a> {state}</td>',
        _cost("{:.1f}", run.seconds / 60, NOTEBOOK_SECONDS[run.tier] / 60),
        _cost("{:.1f} GB", run.peak_bytes / 1e9, PEAK_BYTES / 1e9),
        f"<td>{escape(run.verdict_counts())}</td>",
        f'<td class="number"><small>{_date(run)}<br>{escape(run.tier)} size</small></td>',
    ]
    return f"<tr>{''.join(cells)}</tr>"


def _sum_row(runs: list[Run]) -> str:
    seconds, peak = sum(run.seconds for run in runs), max([run.peak_bytes for run in runs], default=0)
    cells = [
        "<td>all</td>",
        _cost("{:.1f}", seconds / 60, SUITE_SECONDS / 60),
        _cost("{:.1f} GB", peak / 1e9, PEAK_BYTES / 1e9),
        "<td></td><td></td>",
    ]
    return f"<tr>{''.join(cells)}</tr>"


def _cost(form: str, value: float, allowed: float) -> str:
    style = ' class="mi-over"' if value > allowed else ""
    return f'<td class="number"><span{style}>{form.format(value)}</span><br><small>of {allowed:g}</small></td>'


def _section(run: Run, picture: Path | None) -> str:
    """One notebook on the front page: its question, its picture, its claims."""
    heading = f'<h2><a href="{escape(run.notebook)}.html">{escape(run.title)}</a></h2>'
    image = ""
    if picture and picture.exists():
        data = base64.b64encode(picture.read_bytes()).decode("ascii")
        image = f'<img class="mi-picture" src="data:image/png;base64,{data}" alt="a figure of this notebook">'
    table = Table(run.notebook, tuple(map(Claim.from_record, run.claims)))._repr_mimebundle_()["text/html"]
    return f"<section>{heading}{image}{table if run.claims else '<p>No claims.</p>'}</section>"


def _facts(run: Run) -> str:
    return f"executed {_date(run)}, {run.seconds / 60:.1f} minutes, {run.peak_bytes / 1e9:.1f} GB, {run.tier} size"


def _date(run: Run) -> str:
    return datetime.fromisoformat(run.finished).strftime("%Y-%m-%d %H:%M UTC")


def _write_page(path: Path, title: str, body: str) -> None:
    static = resources("mi_utils") / "static"
    page = Template((static / "page.html").read_text(encoding="utf8"))
    style = (static / "page.css").read_text(encoding="utf8") + _code_style()
    with atomic_path(path) as part:
        part.write_text(page.substitute(title=escape(title), style=style, body=body), encoding="utf8")


def _code_style() -> str:
    from pygments.formatters import HtmlFormatter

    return HtmlFormatter(style="default", nobackground=True).get_style_defs(".highlight")


def _write_assets(folder: Path) -> None:
    from plotly.offline import get_plotlyjs

    with atomic_path(folder / "plotly.min.js") as part:
        part.write_text(get_plotlyjs(), encoding="utf8")
