"""Where this repository lives, found out when needed; a made-up name would be somebody's account.

The first of these that is there: the explicit setting, `Repository` under `[project.urls]` of
`pyproject.toml`; GITHUB_REPOSITORY, which GitHub sets in workflows; the remote `origin` of the
checkout. Without one there is no address: pages then have no launch buttons and no links to the
repository, and the notebooks' first cell installs nothing. Standard library only.
"""

import os
import re
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOST = "https://github.com"  # Colab opens notebooks from there and from nowhere else
PLACEHOLDER = re.compile(r"owner|repo|repository|name|username|your[-_]\w*|example", re.IGNORECASE)
HOW = (
    "Give the repository a remote on GitHub (`git remote add origin ADDRESS`), or write its "
    "address as `Repository` under `[project.urls]` in `pyproject.toml`; then `make sync`, and "
    "commit."
)


class AddressError(ValueError):
    """An address that cannot be this repository's; one line."""


def checked(url: str, where: str) -> str:
    """`https://github.com/OWNER/NAME`, from that or from what git calls it; raises AddressError."""
    form = (
        r"(?:https://(?:[^@/\s]*@)?github\.com/|(?:ssh://)?git@github\.com[:/])([\w-]+)/([\w.-]+)"
    )
    match = re.fullmatch(form, url.strip().rstrip("/").removesuffix(".git"))
    if not match:
        raise AddressError(f"{where} is {without_secret(url)!r}; accepted: {HOST}/OWNER/NAME")
    owner, name = match.groups()
    if PLACEHOLDER.fullmatch(owner) or PLACEHOLDER.fullmatch(name):
        raise AddressError(
            f"{where} is {HOST}/{owner}/{name}, a placeholder; give the real address"
        )
    return f"{HOST}/{owner}/{name}"


def without_secret(url: str) -> str:
    """An address without the token or password that may stand before its host."""
    return re.sub(r"//[^/@]*@", "//", url)


def project(root: Path = ROOT) -> dict:
    """`pyproject.toml`."""
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))


def repository(root: Path = ROOT) -> str | None:
    """The repository's address on GitHub; None where there is none.

    Raises:
        AddressError: the explicit setting is no such address, or a placeholder.
    """
    explicit = project(root)["project"].get("urls", {}).get("Repository")
    if explicit:
        return checked(explicit, "Repository in pyproject.toml")
    given = os.environ.get("GITHUB_REPOSITORY")
    if given and os.environ.get("GITHUB_SERVER_URL", HOST) == HOST:
        return checked(f"{HOST}/{given}", "GITHUB_REPOSITORY")
    try:
        return checked(git(root, "remote", "get-url", "origin") or "", "origin")
    except AddressError:  # no remote, or one elsewhere: a folder, another host
        return None


def branch(root: Path = ROOT) -> str:
    """The branch that launch buttons open notebooks from."""
    return project(root)["tool"]["minilib"]["branch"]


def git(root: Path, *words: str) -> str | None:
    """What git says in this checkout; None where there is none, or it fails."""
    if not (root / ".git").exists():  # git would ask a repository around this one
        return None
    try:
        done = subprocess.run(["git", "-C", root, *words], capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


# ---------------------------------------------------------------- what the first cells install

INSTALLS = re.compile(r'"git\+(https://[^"@]+)@([^"]+)"')


def carried(cell: str) -> tuple[str, str] | None:
    """Address and pin that a notebook's first cell installs from; None: it installs nothing."""
    match = INSTALLS.search(cell)
    return (match[1], match[2]) if match else None


def first_cell(notebook: dict) -> str:
    """A notebook's first cell, the one tagged `bootstrap`; raises KeyError if there is none."""
    for cell in notebook["cells"]:
        if "bootstrap" in cell["metadata"].get("tags", ()):
            return "".join(cell["source"])
    raise KeyError("no cell is tagged bootstrap")
