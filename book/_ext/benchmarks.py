"""Sphinx extension: `{benchmarks} rga` shows what `python -m bench rga` measured, with conditions.

Read from `bench/results/<name>-<device>.json`. A benchmark that has no result yet names its
command instead. What cannot be read is a warning, and so an error of a strict build.
"""

import html
import json
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

logger = logging.getLogger(__name__)
DEVICES = ("cpu", "cuda")
RESULTS = Path("bench", "results")


class Benchmarks(SphinxDirective):
    """The ratios of one benchmark, a table per device and part."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The directive's tables as HTML."""
        name, root = self.arguments[0], Path(self.env.srcdir)
        self.env.metadata[self.env.docname]["benchmarks"] = files(root)
        text = []
        for device in DEVICES:
            path = root / RESULTS / f"{name}-{device}.json"
            if not path.is_file():
                command = f"python -m bench {name}" + (" --device cuda" if device == "cuda" else "")
                text.append(f"<p><em>Not measured on {device}:</em> <code>{command}</code></p>")
                continue
            self.env.note_dependency(str(path))
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
                text += [table(part) for part in (found if isinstance(found, list) else [found])]
            except (KeyError, TypeError, ValueError) as error:
                where = self.get_location()
                logger.warning("%s: %r", path.name, error, location=where, type="benchmarks")
        return [nodes.raw("", "\n".join(text), format="html")]


def files(root: Path) -> list[str]:
    """The results that there are."""
    return sorted(path.name for path in (root / RESULTS).glob("*.json"))


def with_new_results(app: Sphinx, env, added: set, changed: set, removed: set) -> list[str]:
    """`env-get-outdated`: pages to be read again because there are more results, or fewer.

    To depend on a file that does not exist would make a page be read again every time.
    """
    now = files(Path(env.srcdir))
    return [page for page, about in env.metadata.items() if about.get("benchmarks", now) != now]


def table(record: dict) -> str:
    """One record as HTML: what was timed on what, then a row per ratio."""
    head = f"{html.escape(record['what'])}<br><small>{html.escape(conditions(record))}</small>"
    rows = ["<tr><th>ratio</th><th>median</th><th>lowest to highest</th><th>n</th></tr>"]
    for name, value in record["ratios"].items():
        rows.append(f"<tr><td>{html.escape(name)}</td>{ratio(value)}</tr>")
    for name, value in record.get("memory_ratios", {}).items():
        rows.append(f"<tr><td>{html.escape(name)}, peak memory</td>{ratio(value)}</tr>")
    return (
        f'<p class="results-title">{head}</p><div class="results"><table>'
        f"{''.join(rows)}</table></div>"
    )


def ratio(value: dict | float) -> str:
    """Cells of a ratio: of several pairs of timings, or a single number."""
    if not isinstance(value, dict):
        return f"<td>{value:.2f}</td><td>–</td><td>–</td>"
    span = f"{value['min']:.2f} to {value['max']:.2f}"
    return f"<td>{value['median']:.2f}</td><td>{span}</td><td>{value['n']}</td>"


def conditions(record: dict) -> str:
    """Machine, versions and case of a record in one line."""
    machine, case = record["hardware"], record["case"]
    where = (
        machine["gpu"] or f"{machine['threads']} of {machine['cores']} cores of {machine['cpu']}"
    )
    versions = ", ".join(f"{name} {value}" for name, value in record["versions"].items())
    what = ", ".join(
        f"{name.replace('_', ' ')} {value}"
        for name, value in case.items()
        if name not in ("device", "threads")
    )
    return f"{where}; {versions}; {what}"


def setup(app: Sphinx) -> dict:
    """Register the extension."""
    app.add_directive("benchmarks", Benchmarks)
    app.connect("env-get-outdated", with_new_results)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
