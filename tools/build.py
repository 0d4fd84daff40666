"""Build the site, strictly: every warning is an error.

    python tools/build.py                          the published pages (book/_executed)
    python tools/build.py --preset small           execute every chapter, from the published trials
    python tools/build.py --preset small --fresh   likewise, with all trials computed from nothing
    python tools/build.py --pdf                    and print it: a PDF of each page, and one of all
    python tools/build.py --links                  no site: ask every address that the book names

The site lands in `_build/<preset or published>/html`, PDFs beside it in `pdf`. At the preset
`smoke` trials are always computed: none are published. Pages whose sources and outputs did not
change are not made again.
This script calls Jupyter Book's own builder rather than its command, which cannot say where the
executed notebooks lie nor build two presets side by side.
"""

import argparse
import filecmp
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent


def execute(preset: str, fresh: bool, out: Path, root: Path = ROOT) -> bool:
    """Execute every chapter into `out/executed` as X.ipynb; True if none failed.

    fresh: with an empty ledger and an empty cache. Copies only what changed, so that the builder
    sees what is new. A chapter that failed is left out here and becomes a warning of the build.
    """
    with tempfile.TemporaryDirectory() as folder:
        nothing = {"LEDGER": f"{folder}/trials", "CACHE": f"{folder}/cache", "PUBLISHED": "none"}
        given = {f"MINILIB_{name}": value for name, value in nothing.items()} if fresh else {}
        command = [sys.executable, "-m", "minilib.cli", "run", "--all", "--preset", preset]
        command += ["--out", f"{folder}/runs", "--workers", str(os.cpu_count() or 1)]
        done = subprocess.run(command, cwd=root, env=os.environ | given)
        collect(Path(folder, "runs", preset), out / "executed")
    return done.returncode == 0


def collect(runs: Path, folder: Path) -> list[str]:
    """Lay the executed notebook of each chapter below `runs` into `folder`; return the chapters."""
    made = {path.parent.parent.name: path for path in runs.glob("*/*/notebook.ipynb")}
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.ipynb"):
        if old.stem not in made:
            old.unlink()
    for chapter, path in made.items():
        target = folder / f"{chapter}.ipynb"
        if not target.exists() or not filecmp.cmp(path, target, shallow=False):
            shutil.copyfile(path, target)
    return sorted(made)


def version(root: Path) -> str:
    """Hash of the style sheet and the extensions, whose changes Sphinx does not see by itself."""
    digest = hashlib.sha256()
    for path in sorted([*root.glob("book/_static/*"), *root.glob("book/_ext/*.py")]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def build(
    root: Path,
    out: Path,
    executed: Path | None = None,
    quiet: bool = False,
    builder: str = "html",
) -> bool:
    """Build the book in `root` into `out/<builder>`; True when there was nothing to complain of.

    executed: folder of executed notebooks, `book/_executed` when None. builder: "linkcheck" makes
    no pages and complains of addresses that do not answer.
    """
    # A grammar of addresses, compiled for more than a second, that checks nothing of ours.
    sys.modules.setdefault("rfc3987_syntax", None)
    from jupyter_book.sphinx import build_sphinx

    # What an interrupted build leaves, no later one mends: it begins anew.
    begun = out / "begun"
    if begun.exists():
        for folder in (out / builder, out / "doctrees"):
            shutil.rmtree(folder, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    begun.touch()
    overrides = {
        "external_toc_path": str(root / "_toc.yml"),
        "latex_individualpages": False,
        "nitpicky": True,
        "site_version": version(root),
    }
    if executed is not None:
        overrides["executed_dir"] = os.path.relpath(executed, root)
    result = build_sphinx(
        root,
        out / builder,
        path_config=root / "_config.yml",
        noconfig=True,
        confoverrides=overrides,
        doctreedir=out / "doctrees",
        warningiserror=True,
        keep_going=True,
        quiet=quiet,
        builder=builder,
    )
    if result != 0:
        # Sphinx warns of a page only when it reads it; without this a second build would pass.
        shutil.rmtree(out / "doctrees", ignore_errors=True)
    begun.unlink()
    return result == 0


def main() -> int:
    """Command line; the exit code is 1 when a chapter failed or the build had warnings."""
    parser = argparse.ArgumentParser(description="Build the site, strictly.")
    parser.add_argument(
        "--preset", help="execute the chapters at this preset (default: show the published pages)"
    )
    parser.add_argument("--fresh", action="store_true", help="compute all their trials anew")
    parser.add_argument("--links", action="store_true", help="ask every address that is named")
    parser.add_argument("--pdf", action="store_true", help="print it all, but the reference")
    parser.add_argument("--verbose", action="store_true", help="show all that the builder says")
    options = parser.parse_args()
    out = ROOT / "_build" / (options.preset or "published")
    executed, ran = None, True
    if options.links:
        return 0 if build(ROOT, out, quiet=not options.verbose, builder="linkcheck") else 1
    if options.preset:
        executed = out / "executed"
        ran = execute(options.preset, options.fresh or options.preset == "smoke", out)
    if not (build(ROOT, out, executed, quiet=not options.verbose) and ran):
        print("the book was not built cleanly: see above", file=sys.stderr)
        return 1
    print(f"the book is at {out / 'html' / 'index.html'}")
    if options.pdf:
        import pdf

        pages = pdf.contents(out / "html")
        pdf.printed(out / "html", out / "pdf", [page for page, _ in pages])
        config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
        whole = pdf.joined(pages, out / "pdf", config["title"], config["author"])
        print(f"the book on paper is {whole}, each page beside it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
