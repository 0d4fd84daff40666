"""Sphinx extension: a page shows a clean notebook with the outputs of its executed copy.

The notebooks in `notebooks/` hold no outputs, so that their history stays readable and that Colab
and the download button give a clean file. A page needs outputs. This extension takes the prose,
the code and the cell metadata (captions, alternative texts) from `notebooks/X.ipynb` and the
outputs from `X.ipynb` in the folder `executed_dir`: by default `book/_executed`, the published
pages; `tools/build.py` names another folder when it executes the chapters itself. A note above each
page, and a line of the first one, say how many trials were read from the ledger.

Prose may be edited without running anything again, code may not: the code cells of both notebooks
must be the same. Two cells are exempt. The one tagged `injected-parameters` exists only in the
executed copy (papermill put it there) and is shown, for it says what was run. The one tagged
`bootstrap` installs the package on hosted machines and changes no number.

A figure of means takes along what single seeds have (`minilib/book/by_seed.py`). It comes to the
page as JSON under the figure's name, from which a script makes a choice of seeds.

Everything wrong is a Sphinx warning, and so an error of a strict build: no executed copy, an error
in an output, a cell that never ran, other code cells, an image without alternative text.
"""

import json
import sys
from pathlib import Path

import nbformat
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from minilib import provenance  # noqa: E402
from minilib.book import markdown  # noqa: E402

logger = logging.getLogger(__name__)

PUBLISHED = "book/_executed"
SEEDS = "application/vnd.minilib.seeds"  # minilib.book.by_seed.KIND, which needs Matplotlib
CHAPTERS = "notebooks/"


def tags(cell) -> list[str]:
    """Tags of a notebook cell."""
    return cell.metadata.get("tags", [])


def merge(source, executed) -> tuple[nbformat.NotebookNode, list[str]]:
    """Put the outputs of one notebook into another that has the same code cells.

    source, executed: notebooks of format 4. Returns a new notebook (prose, code and metadata of
    `source`, outputs of `executed`, with its injected cell) and what was wrong, one line each.
    When the code differs no outputs are taken over: they would stand under code that did not make
    them.
    """
    ran = [cell for cell in executed.cells if cell.cell_type == "code"]
    problems = differences(
        [c for c in source.cells if c.cell_type == "code"],
        [c for c in ran if "injected-parameters" not in tags(c)],
    )
    page = nbformat.from_dict(source)
    if problems:
        return page, problems

    cells, queue = [], iter([*ran, None])
    copy = next(queue)
    for cell in page.cells:
        if cell.cell_type == "code":
            if copy is not None and "injected-parameters" in tags(copy):  # injected at the very top
                cells.append(copy)
                copy = next(queue)
            cell.outputs, cell.execution_count = copy.outputs, copy.execution_count
            problems += flaws(copy)
            copy = next(queue)
        cells.append(cell)
        if cell.cell_type == "code" and copy is not None and "injected-parameters" in tags(copy):
            copy.metadata["tags"] = [*tags(copy), "hide-input"]  # like the parameters themselves
            cells.append(copy)
            copy = next(queue)
    page.cells = cells
    name_missing_figures(page)
    page.cells += seeds_of_figures(page)
    if "widgets" in executed.metadata:
        page.metadata["widgets"] = executed.metadata["widgets"]
    if "minilib" in executed.metadata:
        page.metadata["minilib"] = executed.metadata["minilib"]
    return page, problems


def seeds_of_figures(page: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """Take what figures have of single seeds out of the outputs, into a cell that shows nothing."""
    scripts = []
    for cell in page.cells:
        name = cell.metadata.get("mystnb", {}).get("figure", {}).get("name")
        for output in cell.get("outputs", []):
            data = output.get("data", {}).pop(SEEDS, None)
            if name and data:
                # Nothing in it can end the script, nor begin another.
                text = json.dumps(json.loads(data), separators=(",", ":")).replace("<", "\\u003c")
                scripts.append(
                    f'<script type="application/json" data-seeds="{name}">{text}</script>'
                )
    if not scripts:
        return []
    cell = nbformat.v4.new_markdown_cell("\n".join(["```{raw} html", *scripts, "```"]))
    cell.id = "seeds"  # not a random one: the same run gives the same page
    return [cell]


def differences(source: list, ran: list) -> list[str]:
    """Where the code cells of a notebook and of its executed copy differ, one line each."""
    if len(source) != len(ran):
        return [
            f"the executed copy has {len(ran)} code cells, the notebook has {len(source)}; "
            "run the chapter again"
        ]
    return [
        f"code cell {number} differs from the executed copy ({first_line(a)!r}, there "
        f"{first_line(b)!r}); run the chapter again"
        for number, (a, b) in enumerate(zip(source, ran, strict=True), 1)
        if "bootstrap" not in tags(a) and a.source.strip() != b.source.strip()
    ]


def flaws(cell) -> list[str]:
    """What is wrong with an executed cell: it never ran, or it raised an error nobody expected."""
    if cell.source.strip() and cell.execution_count is None:
        return [f"the cell {first_line(cell)!r} of the executed copy never ran"]
    if "raises-exception" in tags(cell):
        return []
    return [
        f"the cell {first_line(cell)!r} of the executed copy ended in "
        f"{output.ename}: {output.evalue}"
        for output in cell.outputs
        if output.output_type == "error"
    ]


def first_line(cell) -> str:
    """The first line of a cell's source, shortened."""
    return (cell.source.strip().splitlines() or ["(empty)"])[0][:60]


def name_missing_figures(page: nbformat.NotebookNode) -> None:
    """Put words in place of references to figures that a run had no records to draw."""
    for cell in page.cells:
        name = cell.metadata.get("mystnb", {}).get("figure", {}).get("name")
        kinds = [kind for output in cell.get("outputs", []) for kind in output.get("data", {})]
        drawn = any(kind.startswith("image/") or kind == "text/html" for kind in kinds)
        if name is None or drawn:
            continue
        for prose in (c for c in page.cells if c.cell_type == "markdown"):
            prose.source = prose.source.replace(f"{{numref}}`{name}`", "a figure of other runs")


def counted(read: list[dict]) -> str:
    """What some executed notebooks read of the ledger, as a sentence in Markdown.

    read: their metadata `minilib`, with `keys` (kind → keys), `computed` and `machines`.
    """
    keys = {key for one in read for those in one.get("keys", {}).values() for key in those}
    computed = sum(one.get("computed", 0) for one in read)
    machines = {name: None for one in read for name in one.get("machines", ())}
    text = (
        f"{provenance.counted(len(keys), 'trial')}: {len(keys) - computed} read from the ledger, "
    )
    text += f"{computed} computed for this site"
    return f"{text}; made on {', '.join(map(markdown, machines))}." if machines else f"{text}."


def run_of(notebook) -> dict | None:
    """What an executed notebook tells of its run; None when it tells nothing.

    Raises ValueError for what no run writes: a page shows it, so it is not taken as it comes.
    """
    run = notebook["metadata"].get("minilib")
    if run is None:
        return None
    try:
        keys, computed, machines = (
            run.get("keys", {}),
            run.get("computed", 0),
            run.get("machines", {}),
        )
        whole = (
            all(isinstance(key, str) for those in keys.values() for key in those)
            and isinstance(computed, int)
            and all(isinstance(count, int) for count in machines.values())
            and isinstance(run["preset"], str)
        )
    except (AttributeError, KeyError, TypeError):
        whole = False
    if not whole:
        raise ValueError("the executed copy's metadata `minilib` is not what a run writes")
    return run


def run_note(notebook) -> nbformat.NotebookNode | None:
    """A Markdown cell that says what a page shows; None when the notebook does not tell."""
    run = run_of(notebook)
    if not run:
        return None
    text = f"Preset <code>{markdown(run['preset'])}</code>. {counted([run])}"
    if any('id="trials"' in output.get("data", {}).get("text/html", "")
           for cell in notebook.cells for output in cell.get("outputs", [])):  # fmt: skip
        text += ' <a href="#trials">Which, and of which versions</a>.'
    if run["preset"] == "smoke":
        text = (
            "These outputs are a check, not a result: preset `smoke`, built-in toy data, a model "
            "trained for seconds. They show that every cell runs; their numbers mean nothing. "
            f"{text}"
        )
    # A reader of the book comes for its question; one of a check must see that it is one.
    closed = "" if run["preset"] == "smoke" else " dropdown"
    note = nbformat.v4.new_markdown_cell(
        f":::{{admonition}} What this page shows\n:class: run-note{closed}\n\n{text}\n:::"
    )
    note.id = "run-note"  # not a random one: the same run gives the same page
    return note


def count_trials(app: Sphinx, folder: Path, text: str) -> str:
    """Say on the first page what all chapters read, where it has a line `% trials`."""
    read = []
    for copy in sorted(folder.glob("*.ipynb")):
        app.env.note_dependency(str(copy))
        try:
            run = run_of(json.loads(copy.read_text(encoding="utf-8")))
            read += [run] if run else []
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # the chapter's own page says so
    return text.replace("% trials\n", f"This site shows {counted(read)}\n" if read else "")


def show_executed(app: Sphinx, docname: str, content: list[str]) -> None:
    """`source-read`: replace the text of a chapter by its merged notebook, count on page one."""
    folder = Path(app.srcdir, app.config.executed_dir)
    if docname == app.config.root_doc:
        content[0] = count_trials(app, folder, content[0])
    if not docname.startswith(CHAPTERS) or not app.env.doc2path(docname).endswith(".ipynb"):
        return
    copy = folder / f"{docname.removeprefix(CHAPTERS)}.ipynb"
    app.env.note_dependency(str(copy))  # a new run makes the page anew

    def warn(text: str) -> None:
        logger.warning("%s", text, location=docname, type="executed")

    try:
        source = nbformat.reads(content[0], as_version=4)
        executed = nbformat.read(copy, as_version=4)
    except FileNotFoundError:
        warn(f"there is no executed copy {copy.name} in {app.config.executed_dir}")
        return
    except (nbformat.reader.NotJSONError, nbformat.ValidationError) as error:
        warn(f"the notebook or its executed copy cannot be read: {str(error).splitlines()[0]}")
        return
    page, problems = merge(source, executed)
    for problem in problems:
        warn(problem)
    try:
        note = run_note(page)
    except ValueError as error:
        warn(str(error))
        return
    if note and page.cells and page.cells[0].cell_type == "markdown":
        page.cells.insert(1, note)
    content[0] = json.dumps(page)


def check_images(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """`doctree-resolved`: an image that says nothing to who cannot see it is a warning."""
    for image in doctree.findall(nodes.image):
        if not image.get("alt", "").strip():
            logger.warning(
                "image without alternative text: %s",
                image["uri"].rpartition("/")[2],
                location=image.line and image or docname,
                type="executed",
            )


def setup(app: Sphinx) -> dict:
    """Register the extension."""
    app.add_config_value("executed_dir", PUBLISHED, "env", str)
    # Given by tools/build.py; a new value makes every page anew.
    app.add_config_value("site_version", "", "env", str)
    app.connect("source-read", show_executed)
    app.connect("doctree-resolved", check_images)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
