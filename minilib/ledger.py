"""The ledger: everything that was measured once, under the recipe that determines it.

A *trial* is one thing measured once: this method, with these settings, on this victim, with this
seed. Its *recipe* is a frozen dataclass of plain values, nested down to the data set and the seed:

    @recipe
    class Unlearning: ...

    @trial(version=2, why={2: "RA retunes for 40 steps, as its authors do"})
    def unlearning(one: Unlearning) -> list[dict]: ...

Calling ``unlearning(one)`` looks the recipe up and computes only what is missing. There are two
tiers with one interface: *published* (`results/<kind>.jsonl`, committed, one trial a line, small
arrays beside it) and *local* (one file a trial, safe under any number of processes).

The key hashes kind, version and recipe, never code, device or library versions. A field that has
its default is left out, so that a new parameter leaves old keys alone; a changed default needs a
new version. The versions of nested kinds count too.

Nothing heavy is imported at the top: the site decides claims from the ledger without NumPy.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import itertools
import json
import os
import re
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import provenance
from .provenance import counted, plain

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from IPython.display import HTML

ARRAYS_MAX = 256 * 1024  # bytes of a trial's compressed arrays
KEY = re.compile(r"[0-9a-f]{16}")
KIND = re.compile(r"[a-z][a-z0-9_]{0,79}")  # it names a file


class LedgerError(provenance.UsageError):
    """A trial that could not be computed or published; one line."""


class UnknownError(provenance.UsageError, LookupError):
    """A trial, or a kind of them, that the ledger does not have; one line."""


# ---------------------------------------------------------------- recipes


@dataclasses.dataclass(frozen=True)
class Kind:
    """What was declared with ``trial`` or ``cached``: a recipe's function, and its version."""

    name: str
    version: int
    why: Mapping[int, str]
    recipe: type
    compute: Callable
    large: bool = False  # declared with ``cached``: no trial


KINDS: dict[str, Kind] = {}
_KIND_OF: dict[type, Kind] = {}
_RECIPES: dict[str, type] = {}
_PLAIN = (str, bool, float, type(None))  # types of values that stand as they are given


_fields = functools.cache(dataclasses.fields)


def recipe(cls: type) -> type:
    """Make a class a recipe: frozen, keyword-only, of plain values and other recipes.

    Whole numbers become floats where a field is declared so, lists become tuples, so that equal
    recipes have equal keys. A ``__post_init__`` of the class runs after that.
    """
    post_init = cls.__dict__.get("__post_init__")

    def settle(self) -> None:
        for field in _fields(type(self)):
            value = getattr(self, field.name)
            if type(value) not in _PLAIN:
                value = _settled(cls.__name__, field, value)
                object.__setattr__(self, field.name, value)
        if post_init is not None:
            post_init(self)

    cls.__post_init__ = settle
    cls = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    if cls.__name__ in _RECIPES:
        raise ValueError(f"two recipes are called {cls.__name__}")
    _RECIPES[cls.__name__] = cls
    return cls


def _settled(owner: str, field: dataclasses.Field, value):
    if isinstance(value, (list, tuple)):
        return tuple(_settled(owner, field, item) for item in value)
    if isinstance(value, int) and not isinstance(value, bool):
        floats = "float" in str(field.type) and "int" not in str(field.type)
        return float(value) if floats else int(value)
    if isinstance(value, float):
        return float(value)  # NumPy's, too
    if value is None or isinstance(value, (bool, str)) or type(value).__name__ in _RECIPES:
        return value
    raise TypeError(
        f"{owner}.{field.name} is a {type(value).__name__}; accepted: number, text, bool, None, "
        "a tuple of those, or another recipe"
    )


def reads(self, *names: str, of: Iterable[str]) -> None:
    """In a recipe's ``__post_init__``: of the optional fields ``of``, only ``names`` are read.

    The others go back to their defaults, so that nothing is computed twice under two names.
    """
    for field in _fields(type(self)):
        if field.name in of and field.name not in names:
            object.__setattr__(self, field.name, field.default)


def described(one, versions: bool = True) -> dict:
    """A recipe as JSON: fields off their default, nested recipes with their name and version.

    A recipe whose class has ``revisions`` (name → revision → reason) has that of its ``name`` too,
    from the second on: one method of many moved, and all that was measured without it stands.
    """

    def value_of(value):
        if dataclasses.is_dataclass(value):
            kind = _KIND_OF.get(type(value))
            head = {"is": type(value).__name__}
            if kind and versions and kind.version > 1:
                head["version"] = kind.version
            return head | described(value, versions)
        return [value_of(item) for item in value] if isinstance(value, tuple) else value

    fields = {
        field.name: value_of(value)
        for field in _fields(type(one))
        if (value := getattr(one, field.name)) != field.default
    }
    reasons = getattr(type(one), "revisions", {}).get(getattr(one, "name", None), {})
    return fields | ({"revision": max(reasons)} if reasons and versions else {})


def restored(cls: type, description: Mapping):
    """The recipe that a description stands for; None where the class has changed since."""

    def value_of(value):
        if isinstance(value, dict):
            return restored(_RECIPES[value["is"]], value)
        return tuple(value_of(item) for item in value) if isinstance(value, list) else value

    beside = ("is", "version", "revision")
    try:
        return cls(**{name: value_of(v) for name, v in description.items() if name not in beside})
    except (KeyError, TypeError, ValueError):
        return None


def _hashed(*parts) -> str:
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@functools.lru_cache(maxsize=65536)
def key_of(one) -> str:
    """The key of a recipe: 16 hex digits."""
    kind = kind_of(one)
    return _hashed(kind.name, kind.version, described(one))


@functools.lru_cache(maxsize=65536)
def _family(one) -> str:
    """As ``key_of`` without any version and without its class's free fields: see ``stand_in``."""
    free = getattr(type(one), "free", ())
    fields = described(one, versions=False)
    return _hashed(kind_of(one).name, {n: value for n, value in fields.items() if n not in free})


def kind_of(one) -> Kind:
    """The kind that a recipe belongs to. Raises TypeError for what is no recipe of a kind."""
    kind = _KIND_OF.get(type(one))
    if kind is None:
        raise TypeError(f"{type(one).__name__} is no recipe of a trial; known: {_known(KINDS)}")
    return kind


def _known(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "(none)"


def columns(one) -> dict[str, Any]:
    """Every field of a recipe under a flat name.

    A recipe's own fields come first under their names; those of a nested recipe join them, with
    the name of the field that holds it in front where the name is taken: ``epochs`` of the
    unlearning, ``victim_epochs`` of its victim.
    """
    by_name: dict[str, Any] = {}
    nested_recipes = []
    for field in dataclasses.fields(one):
        value = getattr(one, field.name)
        if dataclasses.is_dataclass(value):
            nested_recipes.append((field.name, value))
            by_name.setdefault(field.name, getattr(value, "name", type(value).__name__))
        else:
            by_name[field.name] = ",".join(map(str, value)) if isinstance(value, tuple) else value
    for owner, value in nested_recipes:
        for name, item in columns(value).items():
            by_name[f"{owner}_{name}" if name in by_name else name] = item
    return by_name


# ---------------------------------------------------------------- declaring


def _declare(
    version: int, why: Mapping[int, str] | None, function: Callable, large: bool = False
) -> Callable:
    why, name = dict(why or {}), function.__name__
    if version < 1 or sorted(why) != list(range(2, version + 1)):
        raise ValueError(f"{name}: version {version} needs a reason for each version from 2 on")
    first = next(iter(inspect.signature(function).parameters.values()))
    cls = first.annotation
    cls = inspect.unwrap(function).__globals__.get(cls, cls) if isinstance(cls, str) else cls
    if getattr(cls, "__name__", None) not in _RECIPES:
        raise TypeError(f"{name}: its first argument must be annotated with a recipe")
    if name in KINDS or cls in _KIND_OF:
        raise ValueError(f"{name} or its recipe {cls.__name__} is declared twice")
    KINDS[name] = _KIND_OF[cls] = Kind(name, version, why, cls, function, large)
    return function if large else functools.wraps(function)(lambda one: get(one))


def trial(version: int, why: Mapping[int, str] | None = None) -> Callable:
    """Declare a function of one recipe as a kind of trial.

    The function returns rows (flat dicts), or rows and arrays: ``(rows, {name: array})``. A row may
    hold a list of numbers or texts where a page quotes one. The decorated function returns a
    ``Trial``, from the ledger where it is there.

    Args:
        version: to be raised when numbers move. why: version → reason, from 2 on.
    """
    return functools.partial(_declare, version, why)


def cached(version: int, why: Mapping[int, str] | None = None) -> Callable:
    """Declare a function that makes a large thing (a victim) of one recipe.

    Its version counts in the keys of all trials whose recipes hold this one. The function itself
    keeps what it makes, with ``minilib.cache.kept_model``.
    """
    return functools.partial(_declare, version, why, large=True)


# ---------------------------------------------------------------- one trial


@dataclasses.dataclass(frozen=True)
class Trial:
    """One thing measured once.

    Attributes:
        kind, version, key: which. recipe: its description (fields off their default).
        rows: what was measured. arrays: names of arrays that lie beside it.
        data: what data sets were read (name, split, rows, sha256).
        env, commit, seconds, peak_mib, made: the conditions.
        tier: "published", "local" or "fresh". current: whether it is of its kind's version.
        folder: where its arrays lie.
    """

    kind: str
    version: int
    key: str
    recipe: dict
    rows: list[dict]
    arrays: tuple[str, ...] = ()
    data: tuple[dict, ...] = ()
    env: dict = dataclasses.field(default_factory=dict)
    commit: str | None = None
    seconds: float | None = None
    peak_mib: int | None = None
    made: str = ""
    note: str = ""
    tier: str = "local"
    current: bool = True
    folder: Path | None = dataclasses.field(default=None, repr=False, compare=False)

    def array(self, name: str) -> np.ndarray:
        """One of the trial's arrays."""
        import numpy as np

        with np.load(self.folder / f"{self.key}.npz", allow_pickle=False) as archive:
            return archive[name]

    def record(self) -> dict:
        """What is written down of it."""
        values = {name: getattr(self, name) for name in RECORDED}
        return {name: value for name, value in values.items() if value not in ("", (), None)}

    @property
    def settings(self) -> dict[str, Any]:
        """Its recipe's ``columns``; none where its class has changed since."""
        recipe = recipe_of(self)
        return columns(recipe) if recipe is not None else {}

    def table(self) -> list[dict]:
        """Its rows, each with its settings; a row's own entry wins."""
        settings = self.settings
        return [settings | row for row in self.rows]


RECORDED = tuple(field.name for field in dataclasses.fields(Trial))[:-3]  # all but where it lies


def recipe_of(one: Trial):
    """The recipe of a trial; None where its kind is unknown, or its class has changed since."""
    kind = KINDS.get(one.kind)
    return restored(kind.recipe, one.recipe) if kind else None


@functools.cache
def _checked() -> Callable[[dict], Trial]:
    from pydantic import TypeAdapter

    return TypeAdapter(Trial).validate_python


def _read_trial(item: dict, tier: str, folder: Path) -> Trial:
    """A trial from its record. Raises ValueError for what is no record, or not of its key."""
    from pydantic import ValidationError

    try:
        values = {name: item[name] for name in RECORDED if name in item}
        trial = _checked()(values | {"tier": tier, "folder": folder})
    except ValidationError as error:
        raise ValueError(f"it is no record of a trial: {provenance.first_fault(error)}") from None
    except TypeError:
        raise ValueError("it is no record of a trial") from None
    if not KIND.fullmatch(trial.kind):
        raise ValueError(f"{provenance.shown(trial.kind)} is no name of a kind")
    # Of what was read, before True could become 1; by that it is 16 hex digits, too.
    if _hashed(*(item.get(name) for name in ("kind", "version", "recipe"))) != trial.key:
        raise ValueError("its key is not that of its recipe")
    return trial


# ---------------------------------------------------------------- tiers


def local_folder() -> Path:
    """Where this machine keeps its trials: MINILIB_LEDGER, or `trials` in the cache folder."""
    setting = os.environ.get("MINILIB_LEDGER")
    return Path(setting) if setting else provenance.cache_dir() / "trials"


def published_folder() -> Path | None:
    """`results/` of the checkout, or the same files in an installed package; None switched off."""
    if setting := os.environ.get("MINILIB_PUBLISHED"):
        return None if setting == "none" else Path(setting)
    folder = provenance.find_root() / "results"
    return folder if folder.is_dir() else provenance.PACKAGE / "published"


def fresh_kinds() -> frozenset[str]:
    """Kinds that MINILIB_FRESH names: looked up and kept in a scratch folder alone."""
    return frozenset(filter(None, os.environ.get("MINILIB_FRESH", "").split(",")))


@contextlib.contextmanager
def _within(variable: ContextVar, value) -> Iterator:
    """Let a context variable have a value inside."""
    token = variable.set(value)
    try:
        yield value
    finally:
        variable.reset(token)


_published_alone: ContextVar[bool] = ContextVar("published_alone", default=False)


def published_only() -> contextlib.AbstractContextManager:
    """Read the published tier alone inside, as what decides a claim must."""
    return _within(_published_alone, True)


_files: ContextVar[dict | None] = ContextVar("files", default=None)  # while many are looked up


def _file_of(kind: str, folder: Path | None = None) -> tuple[Path, int, int] | None:
    """A kind's published file, and the state by which a change of it is noticed."""
    files = _files.get() if folder is None else None
    if files is not None and kind in files:
        return files[kind]
    folder, file = folder or published_folder(), None
    if folder is not None:
        path = folder / f"{kind}.jsonl"
        with contextlib.suppress(OSError):
            state = path.stat()
            file = path, state.st_mtime_ns, state.st_size
    if files is not None:
        files[kind] = file
    return file


def _published(kind: str, folder: Path | None = None) -> dict[str, Trial]:
    file = _file_of(kind, folder)
    return _published_file(*file) if file else {}


@functools.lru_cache(maxsize=256)
def _published_file(path: Path, _mtime: int, _size: int) -> dict[str, Trial]:
    """key → trial of one file; a line that cannot be read is named, and the rest goes on."""
    by_key = {}
    folder = path.parent / path.stem
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            trial = _read_trial(provenance.parsed(line), "published", folder)
            if trial.kind != path.stem:
                raise ValueError(f"it is of kind {trial.kind}")
        except ValueError as error:
            warnings.warn(f"{path.name}, line {number} is left out: {error}", stacklevel=2)
            continue
        by_key[trial.key] = trial
    return by_key


@functools.lru_cache(maxsize=256)
def _published_families(path: Path, mtime: int, size: int) -> dict[str, Trial]:
    """family → the trial of one file that stands in for its others."""
    by_family: dict[str, Trial] = {}
    for trial in map(_current, _published_file(path, mtime, size).values()):
        if (recipe := recipe_of(trial)) is not None:
            family = _family(recipe)
            by_family[family] = max(by_family.get(family, trial), trial, key=_rank)
    return by_family


def _rank(one: Trial) -> tuple:
    return one.current, one.version, len(one.rows)


def _local(kind: str, key: str, folder: Path | None = None) -> Trial | None:
    """A trial of the local tier; a damaged file is named and put aside."""
    folder = (folder or local_folder()) / kind
    path = folder / f"{key}.json"
    try:
        trial = _read_trial(provenance.parsed(path.read_bytes()), "local", folder)
        if trial.key != key or trial.kind != kind:
            raise ValueError(f"it is of {trial.kind} {trial.key}")
        if trial.arrays and not (folder / f"{key}.npz").is_file():
            raise ValueError("its arrays are gone")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        warnings.warn(f"trial {kind} {key} is damaged and made again: {error}", stacklevel=2)
        with contextlib.suppress(OSError):
            path.replace(path.with_suffix(".damaged"))
        return None
    return trial


def _local_trials(kind: str) -> Iterator[Trial]:
    for path in sorted((local_folder() / kind).glob("*.json")):
        if KEY.fullmatch(path.stem) and (one := _local(kind, path.stem)):
            yield one


def _current(one: Trial) -> Trial:
    """Say of a trial whether it is of today's version."""
    recipe = recipe_of(one)
    current = recipe is not None and key_of(recipe) == one.key
    return one if current == one.current else dataclasses.replace(one, current=current)


def _base_of(kind: Kind) -> Path:
    """Where what is computed of a kind is kept: the scratch folder, where it is to be fresh."""
    return local_folder() / "fresh" if kind.name in fresh_kinds() else local_folder()


def look(one) -> Trial | None:
    """The trial of a recipe where the ledger has it, else None. Nothing is computed."""
    kind, key = kind_of(one), key_of(one)
    if _published_alone.get():
        trial = _published(kind.name).get(key)
    else:
        base = _base_of(kind)
        published_trial = None if kind.name in fresh_kinds() else _published(kind.name).get(key)
        trial = published_trial or _local(kind.name, key, base) or _unkept.get((base, key))
    if trial is not None:
        _read[trial.key] = trial
    return trial


def tiers(kind: str, key: str) -> dict[str, Trial]:
    """A trial as each tier has it: ``published``, ``local``, ``fresh``."""
    by_tier = {"published": _published(kind).get(key), "local": _local(kind, key)}
    if fresh := _local(kind, key, local_folder() / "fresh"):
        by_tier["fresh"] = dataclasses.replace(fresh, tier="fresh")
    return {name: one for name, one in by_tier.items() if one is not None}


def stand_in(one) -> Trial | None:
    """What may be shown of a recipe that the ledger does not have.

    A recipe class names under ``free`` what says which rows there are and not what is in them: the
    tenth epoch of thirty is the tenth of ten where the learning rate is constant. So the longest
    trial that differs in nothing else stands in; failing that, the newest published one of an older
    version, marked as not current.
    """
    kind, family = kind_of(one).name, _family(one)
    file, trials = _file_of(kind), []
    if getattr(type(one), "free", ()) and not _published_alone.get():
        current = (item for item in map(_current, _local_trials(kind)) if item.current)
        trials = [item for item in current if _family(recipe_of(item)) == family]
    if file and (published_trial := _published_families(*file).get(family)):
        trials.append(published_trial)
    return max(trials, key=_rank, default=None)


def missing(recipes: Iterable) -> list:
    """Those of the recipes, each once, that the ledger does not have."""
    return [one for one in dict.fromkeys(recipes) if look(one) is None]


def available(recipes: Iterable) -> Results:
    """The trials of those recipes that the ledger has, or what is its ``stand_in``."""
    unique = dict.fromkeys(recipes)
    with _within(_files, {}):  # a thousand look-ups ask once what state each file is in
        trials = [look(item) or stand_in(item) for item in unique]
    by_key = {one.key: one for one in trials if one is not None}
    _read.update(by_key)
    return Results(by_key.values())


# ---------------------------------------------------------------- computing

_read: dict[str, Trial] = {}  # what this process has read from the ledger or computed
_computed: dict[str, Trial] = {}
_unkept: dict[tuple[Path, str], Trial] = {}  # computed by this process, and the disk was full
_memories: list[dict] = []
unchecked: set[str] = set()  # data sets that are not known to be what their name stands for
_noted: ContextVar[tuple[list, ...]] = ContextVar("noted", default=())  # outermost first


def note(info: Mapping) -> None:
    """Say that a data set was read (its ``info()``), for the trial that is being computed."""
    info = dict(info)
    if info.get("name", "").partition("+")[0] in unchecked:
        info["checked"] = False
    for infos in _noted.get():
        if info not in infos:
            infos.append(info)


@contextlib.contextmanager
def noting() -> Iterator[list]:
    """Collect what ``note`` is told inside; whoever collects outside gets it, too."""
    infos: list = []
    with _within(_noted, (*_noted.get(), infos)):
        yield infos


def kept_in_memory(size: int = 1) -> Callable:
    """Keep the last few results of a function of one recipe in memory: trials of one model stand
    together, and it is large. What data sets it read is noted again for each trial that asks.
    """

    def decorate(function: Callable) -> Callable:
        memory: dict = {}

        @functools.wraps(function)
        def wrapper(one):
            if one not in memory:
                while len(memory) >= size:  # before the next one is made: both may not fit
                    del memory[next(iter(memory))]
                with noting() as data:
                    result = function(one)
                memory[one] = result, data
            result, data = memory[one] = memory.pop(one)  # the latest stands last
            for info in data:
                note(info)
            return result

        _memories.append(memory)
        return wrapper

    return decorate


def forget() -> None:
    """Drop what ``kept_in_memory`` functions keep in memory."""
    for memory in _memories:
        memory.clear()


def get(one, here: bool = False) -> Trial:
    """The trial of a recipe, computed if the ledger does not have it.

    Any number of processes may ask for the same one: a second asker waits for the first.

    here: as this machine has it, not as it is published.

    Raises:
        LedgerError: the folder of trials cannot be written to.
    """
    if not here and (trial := look(one)) is not None:
        return trial
    kind, key = kind_of(one), key_of(one)
    base = _base_of(kind)
    with locked(base / kind.name, key):
        trial = _local(kind.name, key, base) or _compute(kind, one, key, base)
    _read[key] = trial
    return trial


def array(one, name: str) -> np.ndarray:
    """An array of a recipe's trial; computed here where the published trial came without it."""
    trial = get(one)
    if name not in trial.arrays or not (trial.folder / f"{trial.key}.npz").is_file():
        trial = get(one, here=True)
    return trial.array(name)


@contextlib.contextmanager
def locked(folder: Path, key: str, what: str = "trials") -> Iterator[None]:
    """Hold what is called ``key`` in a folder; who asks for it meanwhile waits."""
    import filelock

    try:
        (folder / ".locks").mkdir(parents=True, exist_ok=True)
        # Freed by the system if its holder dies.
        lock = filelock.FileLock(folder / ".locks" / key).acquire()
    except OSError as error:
        remedy = "set MINILIB_LEDGER to" if what == "trials" else "give --out"
        raise LedgerError(
            f"{what} cannot be kept in {folder} ({error.strerror or error}); {remedy} a folder "
            "that can be written to"
        ) from None
    with lock:
        yield


def held(folder: Path, key: str) -> bool:
    """Whether somebody holds what is called ``key`` in a folder."""
    import filelock

    path = folder / ".locks" / key
    if not path.exists():
        return False
    try:
        with filelock.FileLock(path).acquire(timeout=0):
            return False
    except filelock.Timeout:
        return True
    except OSError:  # nothing can be locked here: who computes will say so
        return False


def accept(record: Mapping, arrays: bytes | None) -> Trial:
    """Keep a trial that another machine has computed: its record, and its arrays' file.

    Raises:
        ValueError: it is no trial, or not that of its key. OSError: it cannot be written.
    """
    trial = _read_trial(dict(record), "local", local_folder() / str(record.get("kind")))
    if trial.arrays and arrays is None:
        raise ValueError("it came without its arrays")
    with locked(trial.folder, trial.key):
        _keep(trial, arrays)
    return trial


def _compute(kind: Kind, one, key: str, base: Path) -> Trial:
    folder, start_time = base / kind.name, time.perf_counter()
    with noting() as infos:
        output = kind.compute(one)
    rows, arrays = output if isinstance(output, tuple) else (output, {})
    result = Trial(
        kind=kind.name,
        version=kind.version,
        key=key,
        recipe=described(one),
        rows=plain(rows),
        arrays=tuple(sorted(arrays)),
        data=tuple(plain(infos)),
        env=provenance.environment(),
        commit=provenance.git_commit(),
        seconds=round(time.perf_counter() - start_time, 2),
        peak_mib=provenance.peak_mib(),
        made=provenance.now(),
        folder=folder,
    )
    try:
        _keep(result, _packed(arrays) if arrays else None)
    except OSError as error:  # a full disk takes the file, not the number
        reason = error.strerror or error
        warnings.warn(f"trial {kind.name} {key} is not kept: {reason}", stacklevel=2)
        _unkept[base, key] = result
    _computed[key] = result
    return result


def _keep(one: Trial, arrays: bytes | None) -> None:
    """Write a trial, its arrays first, so that a trial that is there is whole."""
    if arrays is not None:
        provenance.write_bytes(one.folder / f"{one.key}.npz", arrays)
    provenance.write_json(one.folder / f"{one.key}.json", one.record())


def _packed(arrays: Mapping[str, Any]) -> bytes:
    """Arrays as a compressed `.npz`, the same bytes for the same arrays."""
    import io

    import numpy as np

    arrays = {name: np.asarray(arrays[name]) for name in sorted(arrays)}
    for name, value in arrays.items():
        if value.dtype.kind not in "biufU":
            raise TypeError(f"array {name} is of {value.dtype}; accepted: numbers and texts")
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    if buffer.tell() > ARRAYS_MAX:
        size = f"{buffer.tell() / 1024:.0f} KiB"
        raise ValueError(f"arrays of {size}; accepted: up to 256 KiB a trial")
    return buffer.getvalue()


def run(recipes: Iterable) -> Results:
    """Compute what is missing of some recipes, with a progress bar; return the rows of all.

    What fails does not stop the others. `minilib sweep` computes some side by side.

    Raises:
        LedgerError: some could not be computed; says how many, and why the first.
    """
    trials = {one: look(one) for one in recipes}
    if not trials:
        return Results()
    missing_recipes = [one for one, trial in trials.items() if trial is None]
    if "MINILIB_RUN" not in os.environ:  # else `minilib run` has said so, and the page need not
        for line in edited(filter(None, trials.values())):
            print(line)
    start_time, errors = time.perf_counter(), []
    with _bar(len(trials), len(trials) - len(missing_recipes)) as bar:
        for one in missing_recipes:
            try:
                trials[one] = get(one)
            except Exception as error:
                errors.append((one, error))
            bar.update(1)
    if errors:
        one, error = errors[0]
        if type(error).__name__ in ("DataError", "SettingsError"):
            raise error
        reason = [line for line in str(error).splitlines() if line.strip()][:1]
        raise LedgerError(
            f"{len(errors)} of {len(trials)} trials failed; the first, {kind_of(one).name} "
            f"{key_of(one)}: {': '.join([type(error).__name__, *reason])}"
        ) from error
    print(summary(trials.values(), len(missing_recipes), time.perf_counter() - start_time))
    return Results(trials.values())


@contextlib.contextmanager
def _bar(total: int, had: int):
    """A progress bar for somebody who watches: total, done, from the ledger, remaining time."""
    from tqdm.auto import tqdm
    from tqdm.std import tqdm as plain_tqdm

    terminal = os.environ.get("MINILIB_TTY")  # of the `minilib run` that started this kernel
    in_notebook = "ipykernel" in sys.modules and "MINILIB_RUN" not in os.environ
    bar = tqdm if in_notebook else plain_tqdm
    off = had == total or not (terminal or in_notebook or sys.stderr.isatty())
    with open(terminal, "w") if terminal else contextlib.nullcontext() as file:
        says = f"trials ({had} from the ledger)"
        with bar(total=total, initial=had, desc=says, file=file, disable=off) as shown:
            yield shown


def summary(trials: Collection[Trial], computed: int, seconds: float) -> str:
    """What was read and what was computed, and on which machines, in one line."""
    text = f"{counted(len(trials), 'trial')}: {len(trials) - computed} from the ledger, "
    text += f"{computed} computed" + (f" in {seconds:.0f} s" if computed else "")
    return f"{text}; made on {provenance.named(dict.fromkeys(map(machine_of, trials)))}"


def machine_of(one: Trial) -> str:
    """The processor that a trial was made on: the GPU, where there was one."""
    device = one.env.get("device")
    return (one.env.get("cpu") if device == "cpu" else device) or "a machine that was not noted"


def edited(trials: Iterable[Trial]) -> list[str]:
    """Say which files differ from those that made some trials that are about to be read.

    Nothing where the golden numbers came out the same with the files as they are (`make prove`).
    """
    files = [] if provenance.proven() else [provenance.changed_since(one.commit) for one in trials]
    names = list(dict.fromkeys(name for each in files for name in each))
    return [
        f"{sum(map(bool, files))} of these trials were made before {provenance.named(names)} "
        "changed; --fresh KIND computes them anew, beside the old ones"
    ][: len(names)]


# ---------------------------------------------------------------- reading


def memo(function: Callable) -> Callable:
    """Keep what a view made of the ledger until this process computes another trial."""
    memory: dict = {}

    @functools.wraps(function)
    def kept_in_memory(*arguments):
        key = (arguments, len(_computed), os.environ.get("MINILIB_PUBLISHED"), local_folder())
        if key not in memory:
            memory[key] = function(*arguments)
        return memory[key]

    return kept_in_memory


class Results(list):
    """Trials in the order that was asked for, and their rows."""

    @property
    def rows(self) -> list[dict]:
        """Every row with its recipe's columns, its trial's kind and key."""
        return [{"kind": one.kind, "key": one.key, **row} for one in self for row in one.table()]

    @property
    def frame(self) -> pd.DataFrame:
        """The rows as a tidy frame."""
        import pandas as pd

        return pd.DataFrame(self.rows)

    def of(self, kind: str, **where) -> Results:
        """The trials of one kind whose recipe has these values."""
        return Results(one for one in self if one.kind == kind and matches(one.settings, where))

    def one(self, kind: str, **where) -> Trial:
        """The one trial of a kind whose recipe has these values. Raises LookupError."""
        trials = self.of(kind, **where)
        if len(trials) != 1:
            raise LookupError(f"{len(trials)} trials of {kind} have {where}")
        return trials[0]


def matches(values: Mapping, where: Mapping) -> bool:
    """Whether a mapping has these values; a list or tuple accepts any of its items."""
    return all(
        values.get(name) in (accepted if isinstance(accepted, (list, tuple, set)) else [accepted])
        for name, accepted in where.items()
    )


def trials_of(kind: str) -> list[Trial]:
    """Every trial of a kind over both tiers, each key once, marked where it is not current."""
    if kind not in KINDS:
        raise UnknownError(f"no kind of trial {kind!r}; known: {_known(KINDS)}")
    local = () if _published_alone.get() else _local_trials(kind)
    by_key = {one.key: one for one in local} | _published(kind)
    return [_current(one) for one in by_key.values()]


def frame(kind: str, **where) -> pd.DataFrame:
    """Every row of a kind over both tiers: recipe, row, ``seconds``, and ``env_*`` as columns.

    Args:
        where: columns (of the recipe or of a row) and their values; a list accepts any of them.
    """
    import pandas as pd

    rows = []
    for one in trials_of(kind):
        head = {"kind": kind, "key": one.key, "tier": one.tier, "current": one.current,
                "trial_seconds": one.seconds}  # fmt: skip
        env = {f"env_{name}": value for name, value in one.env.items()}
        rows += [head | row | env for row in one.table()]
    return pd.DataFrame([row for row in rows if matches(row, where)])


def over(
    plan: Callable[[Any], Iterable], cfg, seeds: Iterable[int] | None = None, **values: Iterable
) -> Results:
    """The trials of a plan at other seeds and settings, as far as the ledger has them.

    Those of ``cfg`` itself come first. Nothing is computed.

    Args:
        plan: settings → recipes. cfg: frozen settings with a ``seed``.
        seeds: which to look for; those that any trial of these kinds has, if None.
        values: setting → values; all combinations are looked for.
    """
    if seeds is None:
        seeds = known_seeds({kind_of(one).name for one in plan(cfg)})
    axes = {"seed": [cfg.seed, *sorted(seeds)], **values}
    points = (dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values()))
    return available(one for point in points for one in plan(dataclasses.replace(cfg, **point)))


def known_seeds(kinds: Iterable[str]) -> set[int]:
    """Every seed that a recipe of these kinds has in the ledger."""
    settings = (one.settings for kind in kinds for one in trials_of(kind))
    return {0} | {each[name] for each in settings for name in each if name.endswith("seed")}


def find(key: str) -> Trial:
    """The trial with this key (or the only one whose key starts so). Raises LookupError."""
    trials = [one for kind in sorted(KINDS) for one in trials_of(kind) if one.key.startswith(key)]
    if not re.fullmatch(r"[0-9a-f]{4,16}", key) or len(trials) != 1:
        raise UnknownError(f"{len(trials)} trials have a key that begins with {key!r}")
    return trials[0]


# ---------------------------------------------------------------- the end of a chapter


def colophon(chapter: str, cfg) -> HTML:
    """End a chapter: which trials this process read, how many it computed, where they were made.

    Under `minilib run` the runner is told as well.

    Args:
        chapter: its notebook's name. cfg: its settings, a dataclass or a mapping.

    Raises:
        ValueError: called in the run of another chapter.
    """
    import pandas as pd
    from IPython.display import HTML

    trials = sorted(_read.values(), key=lambda trial: (trial.kind, trial.key))
    by_place: dict[tuple, list[Trial]] = {}
    keys: dict[str, list[str]] = {}
    for one in trials:
        versions = (one.env.get(name) or "–" for name in ("torch", "transformers"))
        by_place.setdefault((machine_of(one), *versions), []).append(one)
        keys.setdefault(one.kind, []).append(one.key)
    rows = [
        {"trials": len(group), "machine": machine, "torch": torch, "transformers": transformers,
         "commit": provenance.named(sorted({trial.commit or "–" for trial in group})),
         "remarks": _remarks(group)}
        for (machine, torch, transformers), group in by_place.items()
    ]  # fmt: skip
    computed = sum(map(_made_now, trials))
    machines = dict(Counter(map(machine_of, trials)))
    _tell_runner(chapter, cfg, {"keys": keys, "computed": computed, "machines": machines})
    read = len(trials) - computed
    said = f"{counted(read, 'trial')} {'was' if read == 1 else 'were'} read from the ledger, "
    with pd.option_context("display.max_colwidth", None):
        table = pd.DataFrame(rows).to_html(index=False, border=0) if rows else ""
    return HTML(f'<div id="trials"><p>{said}{computed} computed here.</p>{table}</div>')


def _made_now(one: Trial) -> bool:
    """Whether this process computed it, or a worker of the command that started this process."""
    return one.key in _computed or one.made >= os.environ.get("MINILIB_SINCE", "9999")


def _remarks(trials: Iterable[Trial]) -> str:
    counts = Counter()
    for one in trials:
        counts["computed here"] += _made_now(one)
        counts["of an older version"] += not one.current
        counts["from code that was not committed"] += str(one.commit).endswith("+dirty")
        # "carried over from run …": which run, the ledger tells
        counts[one.note.partition(" from ")[0]] += bool(one.note)
    return "; ".join(f"{count} {what}" for what, count in counts.items() if count)


def _tell_runner(chapter: str, cfg, told: dict) -> None:
    """Leave `part.json` for the runner, where there is one."""
    run = json.loads(os.environ.get("MINILIB_RUN", "{}"))
    if not run:
        return
    if run["chapter"] != chapter:
        raise ValueError(f"colophon({chapter!r}, …) in the run of {run['chapter']!r}")
    told |= {
        "params": plain(dict(cfg) if isinstance(cfg, Mapping) else dataclasses.asdict(cfg)),
        "env": provenance.environment(),
        "seconds": round(time.perf_counter() - provenance.started, 1),
        "peak_mib": provenance.peak_mib(),
    }
    provenance.write_json(Path(os.environ["MINILIB_RUN_DIR"]) / "part.json", told)


# ---------------------------------------------------------------- publishing


def why_not(one: Trial) -> str | None:
    """Why a trial may not be published; None if it may."""
    if not _current(one).current:
        return "it is of an older version"
    if one.commit is None:
        return "it was made outside a checkout"
    if one.commit.endswith("+dirty"):
        return "its code was not committed"
    unsure = [info["name"] for info in one.data if info.get("checked") is False]
    if unsure:
        return f"the data are not what their name stands for: {', '.join(unsure)}"
    return None


def publish(trials: Iterable[Trial], folder: Path, replace: bool = False) -> list[Trial]:
    """Add local trials to the published tier, and return those that were added.

    A trial that is published already stands, unless ``replace``.

    Raises:
        LedgerError: one may not be published; nothing is written then.
    """
    by_kind: dict[str, dict[str, Trial]] = {}
    for trial in trials:
        if reason := why_not(trial):
            raise LedgerError(f"{trial.kind} {trial.key} cannot be published: {reason}")
        by_kind.setdefault(trial.kind, {})[trial.key] = trial
    added_trials = []
    for kind, new_trials in by_kind.items():
        old_trials = _published(kind, folder)
        new_trials = {
            key: trial for key, trial in new_trials.items() if replace or key not in old_trials
        }
        for trial in new_trials.values():
            if trial.arrays and trial.folder != folder / kind:
                content = (trial.folder / f"{trial.key}.npz").read_bytes()
                provenance.write_bytes(folder / kind / f"{trial.key}.npz", content)
        # What an older version measured goes when the new one is there.
        lineages = set(map(_lineage, new_trials.values()))
        kept = {key: one for key, one in old_trials.items() if _lineage(one) not in lineages}
        write_published(folder / f"{kind}.jsonl", (kept | new_trials).values())
        added_trials += new_trials.values()
    return added_trials


def _lineage(one: Trial) -> str:
    """Equal for a trial and its older versions; its key where its recipe's class has changed."""
    recipe = recipe_of(one)
    return one.key if recipe is None else json.dumps(described(recipe, versions=False))


def write_published(path: Path, trials: Iterable[Trial]) -> None:
    """Write a kind's file: one trial a line, in the order of their recipes."""
    lines = [
        json.dumps(one.record(), ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"
        for one in sorted(trials, key=lambda one: (json.dumps(one.recipe, sort_keys=True), one.key))
    ]
    provenance.write_bytes(path, "".join(lines).encode("utf-8"))
