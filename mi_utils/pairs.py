"""Notebooks and their text pairs: `notebooks/src/NN_topic.py` is edited, `notebooks/NN_topic.ipynb` is opened.

The notebook is built from its pair, without outputs, with cell ids that depend on nothing but their order, so that
building twice gives the same bytes.
"""

from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode

from mi_utils.files import atomic_path

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
HEADER = {"kernelspec": KERNEL, "jupytext": {"formats": "ipynb,src//py:percent"}}


def find_pairs(folder: Path) -> dict[Path, Path]:
    """Each text pair under `folder`/src with the notebook that belongs to it, whether or not that exists."""
    return {path: folder / f"{path.stem}.ipynb" for path in sorted((folder / "src").glob("[0-9][0-9]_*.py"))}


def build(text: Path) -> NotebookNode:
    """The notebook that a text pair stands for: stripped, with the kernel's name and stable cell ids."""
    return _plain(jupytext.read(text, fmt="py:percent"))


def is_in_step(text: Path, notebook: Path) -> bool:
    """Whether the notebook on disk is the one its text pair builds, outputs and ids aside."""
    return notebook.exists() and _plain(nbformat.read(notebook, as_version=4)) == build(text)


def sync(text: Path, notebook: Path) -> str | None:
    """Bring a pair in step: the newer file wins, the notebook is stripped. Returns what was done, or None."""
    wrote = None
    if not is_in_step(text, notebook) and notebook.exists() and notebook.stat().st_mtime > text.stat().st_mtime:
        _write_text(_plain(nbformat.read(notebook, as_version=4)), text)
        wrote = text.name
    stripped = nbformat.writes(build(text)) + "\n"
    if not notebook.exists() or notebook.read_text(encoding="utf8") != stripped:
        with atomic_path(notebook) as part:
            part.write_text(stripped, encoding="utf8")
        wrote = wrote or notebook.name
    return wrote and f"wrote {wrote}"


def _write_text(notebook: NotebookNode, text: Path) -> None:
    with atomic_path(text) as part:
        part.write_text(jupytext.writes(notebook, fmt="py:percent"), encoding="utf8")


def _plain(notebook: NotebookNode) -> NotebookNode:
    """Sources, cell types and tags only."""
    plain = nbformat.v4.new_notebook(metadata=HEADER)
    for number, cell in enumerate(notebook.cells):
        tags = {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
        make = {"code": nbformat.v4.new_code_cell, "markdown": nbformat.v4.new_markdown_cell}[cell.cell_type]
        plain.cells.append(make(cell.source, metadata=tags, id=f"cell-{number:02d}"))
    return nbformat.from_dict(plain)
