"""Build the site, strictly: every warning is an error.

    python tools/build.py                   the published runs (book/_executed)
    python tools/build.py --preset smoke    the latest local runs at that preset
    python tools/build.py --links           no site: ask every address that the book names

The site lands in `_build/<preset or published>/html`. Pages whose sources and runs did not change
are not made again. This script calls Jupyter Book's own builder rather than its command, which
cannot say where the executed notebooks lie nor build two presets side by side.
"""

import argparse
import filecmp
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def collect(preset: str, folder: Path, root: Path = ROOT) -> list[str]:
    """Lay the latest run of each chapter at `preset` into `folder` as X.ipynb; return the chapters.

    Copies only what changed, so that the builder sees what is new. A chapter without a run is left
    out here and becomes a warning of the build.
    """
    command = [sys.executable, "-m", "minilib.cli", "latest", "--preset", preset]
    answer = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True, check=True).stdout
    latest = dict(line.split("\t") for line in answer.splitlines())
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.ipynb"):
        if old.stem not in latest:
            old.unlink()
    for chapter, path in latest.items():
        target = folder / f"{chapter}.ipynb"
        if not target.exists() or not filecmp.cmp(root / path, target, shallow=False):
            shutil.copyfile(root / path, target)
    return sorted(latest)


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
    from jupyter_book.sphinx import build_sphinx

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
    return result == 0


def main() -> int:
    """Command line; the exit code is 1 when the build had warnings."""
    parser = argparse.ArgumentParser(description="Build the site, strictly.")
    parser.add_argument(
        "--preset", help="show the latest local runs at this preset (default: the published runs)"
    )
    parser.add_argument("--links", action="store_true", help="ask every address that is named")
    parser.add_argument("--verbose", action="store_true", help="show all that the builder says")
    options = parser.parse_args()
    out = ROOT / "_build" / (options.preset or "published")
    executed = None
    if options.links:
        return 0 if build(ROOT, out, quiet=not options.verbose, builder="linkcheck") else 1
    if options.preset:
        executed = out / "executed"
        collect(options.preset, executed)
    if not build(ROOT, out, executed, quiet=not options.verbose):
        print("the book was not built cleanly: see the warnings above", file=sys.stderr)
        return 1
    print(f"the book is at {out / 'html' / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
