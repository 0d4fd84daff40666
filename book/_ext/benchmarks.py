"""Sphinx extension: `{benchmarks} rga` shows what `python -m bench rga` measured, with conditions.

Read from `bench/results/<name>-<device>.json`: a row per ratio with its target, if it has one, a
row per part that stands beside its machine's limit. A benchmark that has no result yet names its
command instead. What cannot be read is a warning, and so an error of a strict build.
"""

import html
import json
import sys
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from bench import targets  # noqa: E402

logger = logging.getLogger(__name__)
RESULTS = Path("bench", "results")


class Benchmarks(SphinxDirective):
    """The ratios of one benchmark, a table per device and part."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The directive's tables as HTML."""
        (name,) = self.arguments
        root = Path(self.env.srcdir)
        self.env.metadata[self.env.docname]["benchmarks"] = files(root)
        shown: list[nodes.Node] = []
        self.env.note_dependency(str(ROOT / "bench/targets.py"))
        for device in targets.DEVICES:
            path = root / RESULTS / f"{name}-{device}.json"
            if not path.is_file():
                command = f"python -m bench {name}" + (" --device cuda" if device == "cuda" else "")
                missing = f"<p><em>Not measured on {device}:</em> <code>{command}</code></p>"
                shown.append(nodes.raw("", missing, format="html"))
                continue
            self.env.note_dependency(str(path))
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
                for part in found if isinstance(found, list) else [found]:
                    shown.append(nodes.raw("", table(part, name), format="html"))
            except (KeyError, TypeError, ValueError) as error:
                where = self.get_location()
                logger.warning("%s: %r", path.name, error, location=where, type="benchmarks")
        return shown


def files(root: Path) -> list[str]:
    """The results that there are."""
    return sorted(path.name for path in (root / RESULTS).glob("*.json"))


def with_new_results(app: Sphinx, env, added: set, changed: set, removed: set) -> list[str]:
    """`env-get-outdated`: pages to be read again because there are more results, or fewer.

    To depend on a file that does not exist would make a page be read again every time.
    """
    now = files(Path(env.srcdir))
    return [page for page, about in env.metadata.items() if about.get("benchmarks", now) != now]


def table(record: dict, name: str = "") -> str:
    """One record as HTML: what was timed on what, a row per ratio, per switch, per part's limit.

    name: of the benchmark, by which its targets are found.
    """
    head = f"{html.escape(record['what'])}<br><small>{html.escape(conditions(record))}</small>"
    found = [f'<p class="results-title">{head}</p>']
    rows = [
        ratio_row(label + (", peak memory" if kind == targets.MEMORY else ""), value,
                  targets.target(name, record, label, kind))
        for kind in (targets.RATIOS, targets.MEMORY)
        for label, value in record.get(kind, {}).items()
    ]  # fmt: skip
    if rows:
        found.append(boxed(("ratio", "median", "lowest to highest", "n", "target"), rows))
    if record.get("switches"):
        rows = [
            f"<tr><td>{html.escape(label.replace('_', ' '))}</td>{ratio(value['slowdown'])}</tr>"
            for label, value in record["switches"].items()
        ]
        heads = ("left out", "time with it out / with all on, median", "lowest to highest", "n")
        found.append(boxed(heads, rows))
    if "limits" in record:
        found.append(beside(record, name))
    return "".join(found)


def boxed(heads: tuple[str, ...], rows: list[str]) -> str:
    """A table that scrolls inside itself; a column of targets only where there is one."""
    if heads[-1] == "target" and all(row.endswith("<td></td></tr>") for row in rows):
        heads, rows = heads[:-1], [row.removesuffix("<td></td></tr>") + "</tr>" for row in rows]
    top = "".join(f"<th>{head}</th>" for head in heads)
    return f'<div class="results"><table><tr>{top}</tr>{"".join(rows)}</table></div>'


def ratio_row(label: str, value: dict | float, target: targets.Target | None) -> str:
    """A ratio, and whether it is what it should be."""
    return f"<tr><td>{html.escape(label)}</td>{ratio(value)}{verdict(value, target)}</tr>"


def verdict(value: dict | float, target: targets.Target | None) -> str:
    """The cell of a target."""
    if target is None:
        return "<td></td>"
    reached = target.reached(value["median"] if isinstance(value, dict) else value)
    kind, word = ("holds", "reached") if reached else ("fails", "not reached")
    return f'<td class="{kind}">{target.said()}, {word}</td>'


def beside(record: dict, name: str) -> str:
    """Parts of a record beside the limit that bounds each."""
    rows = []
    for label, part in record["limits"]["parts"].items():
        moved = "bytes" in part
        work = f"{part['bytes'] / 1e6:,.1f} MB" if moved else f"{part['flops'] / 1e9:,.1f} GFLOP"
        unit = "GB/s" if moved else "GFLOP/s"
        most = record["limits"]["machine"][part["limit"]]
        which = "copy" if moved else part["limit"]
        target = targets.target(name, record, label, targets.SHARES)
        cells = (work, f"{part['seconds']:.3g} s", f"{part['rate'] / 1e9:,.1f} {unit}",
                 f"{most / 1e9:,.1f} {unit} ({which})", f"{100 * part['share']:.0f} %")  # fmt: skip
        inner = "".join(f"<td>{cell}</td>" for cell in (html.escape(label), *cells))
        rows.append(f"<tr>{inner}{verdict(part['share'], target)}</tr>")
    heads = ("part", "work", "seconds", "rate", "the machine's", "share", "target")
    return boxed(heads, rows)


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
