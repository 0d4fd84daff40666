"""What an audit of an image classifier is given: somebody's model, and a folder of clean images.

Nothing is guessed. What the model expects (size, channels, mean, deviation, names of classes) is
read from its folder, or said by who asks; images are matched to classes by name, never by position.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..data.files import DataError, shown
from ..data.images import ImageDataset
from ..models import adapters, loading
from ..models.foreign import foreign_network, read_state
from ..models.images import ImageClassifier, unwrap, wrap
from ..models.names import ModelError, adapter_of, base_of

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".gif", ".tif", ".tiff")
IGNORED = ("Thumbs.db", "desktop.ini")  # and all that begins with a dot
SAME_PIXELS = 0.01  # mean difference from transformers' own processor, in units of 1 (= 255)
LEAST_ROWS = 4  # images of a class: some to search a trigger on, others to test it


@dataclass(frozen=True)
class Preprocessing:
    """How a network wants its images.

    Attributes:
        height, width: pixels. channels: 1 or 3. mean, std: per channel, in units of 1 (= 255).
        resize: before the middle (height × width) is cut out, an image is squeezed to this (height,
            width), or its shorter edge to this number. resample: PIL's number of the filter.
    """

    height: int
    width: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | tuple[int, int]
    resample: int = 2

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.height, self.width


@dataclass
class AuditedImageModel:
    """Somebody's image classifier, ready for the library, and the way back.

    Attributes:
        model: the network behind the library's interface, in eval mode.
        class_names: in the order of its logits. preprocessing: what it expects of an image.
        name: for messages and reports. processor: the file of Hugging Face's format that says what
            it expects; None for a state dict. architecture: of a state dict; None for a folder.
        remarks: on how it was loaded, one line each.
    """

    model: ImageClassifier
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    name: str
    processor: Path | None = None
    architecture: str | None = None
    remarks: tuple[str, ...] = ()

    def save(self, model: ImageClassifier, out: Path) -> Path:
        """Write a cleaned model as the original came: a folder of Hugging Face's, or safetensors.

        Args:
            model: ``self.model`` after unlearning. out: a folder, made where there is none.

        Returns the folder, or the file in it.
        """
        out.mkdir(parents=True, exist_ok=True)
        network = unwrap(model).cpu()
        if self.processor is None:
            path = out / f"{self.architecture}.safetensors"
            loading.save(network, path)
            return path
        with loading.quiet():
            network.save_pretrained(out)
        shutil.copyfile(self.processor, out / self.processor.name)
        return out


PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")


# ---------------------------------------------------------------- the model


def model_from_folder(folder: Path, class_names: Sequence[str] = ()) -> AuditedImageModel:
    """Read an image classifier in the format of transformers (ViT, ResNet, …).

    A folder with a LoRA adapter is its base with the adapter merged into it.

    Args:
        class_names: in the order of its logits, where the folder does not say them: of an adapter,
            whose own names PEFT does not save, or of classes that are called LABEL_0, LABEL_1, ….

    Raises:
        ModelError: no such folder; no configuration, weights in safetensors or
            preprocessor_config.json; a head or layers that the weights lack; labels without names
            of their own; a network that does something after its head; see ``models.adapters``.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise ModelError(f"there is no folder {folder}; accepted: one that exists")
    tensors = None
    if adapter_of(str(folder.resolve())):
        adapters.check_installed(folder)
        adapters.described(folder)
        tensors = adapters.weights(folder)
    base, revision = _base(folder) if tensors else (str(folder), None)
    if Path(base).is_absolute() or not tensors:
        _check_folder(Path(base))
    network, names = _network(folder, base, revision, tensors, tuple(map(str, class_names)))
    channels = int(getattr(network.config, "num_channels", 3))
    processor = _processor(folder, base, revision)
    how = _preprocessing(processor, channels, getattr(network.config, "image_size", None))
    model = _wrapped(network.eval(), _head_of(network, len(names)), how, folder.name)
    remarks = (adapters.remark(folder),) if tensors else ()
    return AuditedImageModel(model, names, how, folder.name, processor, remarks=remarks)


def _base(folder: Path) -> tuple[str, str | None]:
    """Where an adapter's base is: a folder, or a name on the Hub; and the Hub's revision."""
    base = base_of(folder)
    if Path(base).is_absolute():
        return base, None
    name, _, revision = base.partition("@")
    return name, revision or None


def _network(
    folder: Path, base: str, revision: str | None, tensors: dict | None, given: tuple[str, ...]
) -> tuple[nn.Module, tuple[str, ...]]:
    """The network of a folder, an adapter (``tensors``) merged into it, and its classes' names."""
    from transformers import AutoConfig, AutoModelForImageClassification

    more = {"revision": revision} if revision else {}
    own = folder if (folder / "config.json").is_file() else None
    try:
        with loading.quiet():
            config = AutoConfig.from_pretrained(own or base, trust_remote_code=False, **more)
    except Exception as error:  # transformers raises its own of every kind
        raise _unreadable(folder, error) from None
    outputs = adapters.outputs(tensors) if tensors else None
    if outputs and outputs != config.num_labels:
        config.num_labels = outputs  # and their names are LABEL_0, LABEL_1, …
    names = _labels(folder, config, given, bool(tensors) and own is None)
    if given:  # so that a cleaned model is saved with them
        config.id2label = dict(enumerate(names))
        config.label2id = {name: number for number, name in enumerate(names)}
    try:
        with loading.quiet():
            network, info = AutoModelForImageClassification.from_pretrained(
                base, config=config, trust_remote_code=False, use_safetensors=True,
                dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True, **more,
            )  # fmt: skip
    except Exception as error:  # transformers and safetensors raise their own of every kind
        raise _unreadable(folder, error) from None
    held = adapters.held(tensors) if tensors else set()
    _check_loaded(folder, info, held)
    return adapters.merged(network, folder, tensors) if tensors else network, names


def _processor(folder: Path, base: str, revision: str | None) -> Path:
    """The file that says how images are read: the folder's own, else that of an adapter's base."""
    from transformers.utils import cached_file

    for name in PREPROCESSORS:
        if (folder / name).is_file():
            return folder / name
    for name in PREPROCESSORS if str(folder) != base else ():
        with contextlib.suppress(OSError):  # not there
            return Path(cached_file(base, name, revision=revision))
    raise ModelError(
        f"folder {folder} has no preprocessor_config.json, so that size, mean and deviation "
        "would be guessed; accepted: the one that it was trained with"
    )


def model_from_state(
    path: Path,
    architecture: str,
    mean: Sequence[float],
    std: Sequence[float],
    size: int | tuple[int, int],
    class_names: Sequence[str],
) -> AuditedImageModel:
    """Read a network of torchvision's or BackdoorBench's names from a safetensors file.

    Args:
        architecture: one of ``models.foreign.ARCHITECTURES``. mean, std: one value, or one per
            channel, in units of 1. size: of an image in pixels. class_names: in the order of its
            logits: a state dict does not say them.

    Raises:
        ModelError: a file or weights that are not what they should be; numbers that do not fit.
    """
    path = Path(path).expanduser()
    network, head = foreign_network(architecture, weights := read_state(path))
    channels = next(v for v in weights.values() if v.ndim == 4).shape[1]
    if channels not in (1, 3):
        raise ModelError(f"{path.name} takes {channels} channels; accepted: 1 or 3")
    height, width = size if isinstance(size, tuple) else (size, size)
    how = Preprocessing(
        _pixels("height", height), _pixels("width", width), channels,
        _per_channel("mean", mean, channels), _per_channel("std", std, channels), (height, width),
    )  # fmt: skip
    class_names = tuple(map(str, class_names))
    outputs = network.get_submodule(head).out_features
    if len(class_names) != outputs:
        raise ModelError(
            f"{len(class_names)} names of classes for {outputs} logits; accepted: one each, in the "
            "order of the logits"
        )
    _check_names(path.name, class_names)
    model = _wrapped(network, head, how, path.name)
    return AuditedImageModel(model, class_names, how, path.name, architecture=architecture)


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ModelError(f"folder {folder} has no config.json; accepted: a model of transformers")
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
        hint = f" (it has {pickled[0]}, which is pickled)" if pickled else ""
        raise ModelError(
            f"folder {folder} has no weights in safetensors{hint}; accepted: *.safetensors, as "
            "model.save_pretrained(FOLDER) writes them"
        )


def _unreadable(folder: Path, error: Exception) -> ModelError:
    reason = " ".join(str(error).split())[:140] or type(error).__name__
    return ModelError(
        f"folder {folder} is no image classifier that can be loaded ({reason}); accepted: what "
        "AutoModelForImageClassification reads, without code of its own"
    )


def _labels(folder: Path, config, given: tuple[str, ...], adapter: bool) -> tuple[str, ...]:
    """The classes' names: those of the folder, or ``given`` where it has none of its own.

    adapter: whether the names would be its base's, which need not be its own.
    """
    labels = {int(k): str(v) for k, v in (getattr(config, "id2label", None) or {}).items()}
    if sorted(labels) != list(range(len(labels))) or len(labels) < 2:
        raise ModelError(
            f"{folder.name}/config.json: id2label is {shown(labels)}; accepted: a name for each of "
            "the labels 0, 1, … (two or more)"
        )
    names = tuple(labels[k] for k in range(len(labels)))
    unnamed = names == tuple(f"LABEL_{k}" for k in range(len(labels)))
    if given and not (unnamed or adapter):
        raise ModelError(
            f"--classes is given for {folder.name}, which names its classes itself "
            f"({shown(', '.join(names))}); accepted: where they have no names"
        )
    if given and len(given) != len(names):
        raise ModelError(
            f"--classes has {len(given)} names for {len(names)} logits; accepted: one each, in the "
            "order of the logits"
        )
    if unnamed and not given:
        raise ModelError(
            f"{folder.name}: its {len(labels)} classes are called {shown(', '.join(names))}, which "
            "names none; accepted: --classes A,B,… in the order of the logits, or id2label in "
            "config.json, as the folders of clean images are named"
        )
    names = given or names
    _check_names(folder.name, names)
    return names


def _check_names(where: str, names: tuple[str, ...]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ModelError(f"{where}: two classes are called {twice[0]!r}; accepted: one name each")


def _check_loaded(folder: Path, info: dict, held: set[str]) -> None:
    """Raise ModelError for weights that are not there, but for those that an adapter holds."""
    absent = sorted(set(info["missing_keys"]) - held)
    other = sorted(str(entry) for entry in info["mismatched_keys"] if entry[0] not in held)
    if absent or other:
        what = f"lack {absent[0]}" if absent else f"have another shape of {other[0][:80]}"
        number = len(absent) + len(other)
        raise ModelError(
            f"folder {folder}: its weights {what} ({number} in all), which would be random; "
            "accepted: weights of the whole classifier, head included"
        )


def _head_of(network: nn.Module, classes: int) -> str:
    """The name of the last linear layer that has as many outputs as there are classes."""
    heads = [n for n, m in network.named_modules()
             if isinstance(m, nn.Linear) and m.out_features == classes]  # fmt: skip
    if not heads:
        raise ModelError(
            f"no linear layer of the network has {classes} outputs, one per class of id2label; "
            "accepted: a classifier that ends in one"
        )
    return heads[-1]


def _wrapped(network: nn.Module, head: str, how: Preprocessing, name: str) -> ImageClassifier:
    try:
        with loading.quiet():
            return wrap(network, head, how.mean, how.std, how.shape).eval()
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{name} does not take images of {how.height} × {how.width} × {how.channels}, or ends "
            f"in something else than its head ({reason}); accepted: its own size, a linear head"
        ) from None


def _preprocessing(path: Path, channels: int, image_size) -> Preprocessing:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ModelError(f"{path} cannot be read; accepted: JSON in UTF-8") from None
    config = config.get("image_processor", config) if isinstance(config, dict) else {}
    theirs = _theirs(path)
    # Theirs says what a file leaves to its type: whether 224 is a square's side or the shorter
    # edge, whether the middle is cut out, with which filter.
    config = theirs.to_dict() if theirs else config
    scale = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0
    if not isinstance(scale, float | int) or abs(scale * 255 - 1) > 1e-3:
        raise ModelError(
            f"{path.name}: images are multiplied by {scale!r}; accepted: 1/255 (pixels in 0 … 1)"
        )
    normal = config.get("do_normalize", True)
    mean = config.get("image_mean") if normal else 0.0
    std = config.get("image_std") if normal else 1.0
    height, width, resize = _size(path.name, config, image_size)
    resample = 2 if config.get("resample") is None else config["resample"]
    if resample not in range(6):
        raise ModelError(
            f"{path.name}: resample is {resample!r}; accepted: 0 … 5, PIL's number of the filter"
        )
    how = Preprocessing(
        height, width, channels, _per_channel("image_mean", mean, channels),
        _per_channel("image_std", std, channels), resize, int(resample),
    )  # fmt: skip
    if theirs:
        _check_same(path.name, how, theirs)
    return how


def _theirs(path: Path):
    """The processor that transformers makes of a file; None where it makes none."""
    from transformers import AutoImageProcessor

    with loading.quiet(), contextlib.suppress(Exception):  # of no type, or of one that is not here
        return AutoImageProcessor.from_pretrained(path.parent, trust_remote_code=False)
    return None


def _check_same(name: str, how: Preprocessing, theirs) -> None:
    """Raise ModelError where transformers' processor makes something else of a picture than we do.

    Some swap the colours, or scale in ways of their own; an audit of such images would be one of
    another model. The picture is smooth, so that two libraries' filters give the same.
    """
    from PIL import Image

    across, down = np.meshgrid(np.linspace(0, 255, 300), np.linspace(0, 255, 220))
    picture = Image.fromarray(np.stack([across, down, across / 5], 2).astype(np.uint8))
    if not getattr(theirs, "do_resize", True):
        picture = picture.resize((how.width, how.height))
    ours = _fitted(picture, how).transpose(2, 0, 1) / 255  # (C, H, W)
    picture = picture.convert("L" if how.channels == 1 else "RGB")
    mean, std = (np.reshape(values, (-1, 1, 1)) for values in (how.mean, how.std))
    try:
        with loading.quiet():
            given = theirs(picture, return_tensors="pt")["pixel_values"][0].numpy() * std + mean
    except Exception:  # one that fails says nothing of what it would do
        return
    if given.shape != ours.shape or np.abs(given - ours).mean() > SAME_PIXELS:
        raise ModelError(
            f"{name}: {type(theirs).__name__} does more with an image than is done here; accepted: "
            "it is resized, its middle cut out, and each channel normalised"
        )


def _size(name: str, config: dict, image_size) -> tuple[int, int, int | tuple[int, int]]:
    """Height and width of what is cut out, and what is resized to before that."""
    size = config.get("size", image_size) if config.get("do_resize", True) else image_size
    crop = config.get("crop_size") if config.get("do_center_crop") else None
    size, crop = ({"height": v, "width": v} if type(v) is int else v for v in (size, crop))
    resize: int | tuple[int, int] | None = None
    if isinstance(size, dict) and "shortest_edge" in size:
        resize = _pixels("shortest_edge", size["shortest_edge"])
        share, squeezed = config.get("crop_pct"), crop is None and resize >= 384
        if crop is None:
            crop = {"height": resize, "width": resize}
        # This share of the image is cut out, but of ResNet's and ConvNeXT's of 384 pixels or more,
        # which are squeezed.
        if share:
            resize = (resize, resize) if squeezed else int(resize / share)
    both = size if resize is None else crop
    if not isinstance(both, dict) or not {"height", "width"} <= both.keys():
        raise ModelError(
            f"{name}: size is {shown(config.get('size'))}; accepted: height and width, or "
            "shortest_edge, in pixels"
        )
    if resize is None:
        resize = _pixels("height", size["height"]), _pixels("width", size["width"])
    crop = crop or size
    return _pixels("height", crop["height"]), _pixels("width", crop["width"]), resize


def _pixels(name: str, value) -> int:
    if type(value) is not int or not 4 <= value <= 2048:
        raise ModelError(f"{name} is {value!r}; accepted: 4 … 2048 pixels")
    return value


def _per_channel(name: str, value, channels: int) -> tuple[float, ...]:
    values = [value] if isinstance(value, int | float) else list(value or ())
    numbers = all(isinstance(v, int | float) and np.isfinite(v) for v in values)
    if len(values) not in (1, channels) or not numbers:
        raise ModelError(
            f"{name} is {shown(value)}; accepted: one number, or one for each of {channels} "
            "channels, in units of 1 (= 255)"
        )
    low, high = (1e-6, 10.0) if "std" in name else (-10.0, 10.0)
    if not all(low <= v <= high for v in values):
        unit = " (is it in units of 255?)" if max(values) > 10 else ""
        raise ModelError(f"{name} is {shown(value)}{unit}; accepted: {low:g} … {high:g}")
    return tuple(float(v) for v in values)


# ---------------------------------------------------------------- the images


@dataclass(frozen=True)
class CleanImages:
    """Clean images with right labels, and what there is to say of them.

    Attributes:
        dataset: rows in the order of the class names, then of the files. files: path of each row.
        resized: rows that had another size. twice: files that have the content of an earlier one
            of the same class, and were left out.
    """

    dataset: ImageDataset
    files: tuple[str, ...]
    resized: int
    twice: tuple[str, ...]


def read_clean_images(folder: Path, audited: AuditedImageModel) -> CleanImages:
    """Read a folder with one sub-folder of images per class, named as the model's classes.

    Raises:
        DataError: no such folder; images that lie in none of the sub-folders; a sub-folder of no
            class, or a class without one; fewer than LEAST_ROWS images of a class; a file that is
            no whole image; the same image in two classes.
    """
    folder = Path(folder).expanduser()
    names, how = audited.class_names, audited.preprocessing
    images, labels, files, resized, twice = [], [], [], 0, []
    class_of: dict[str, tuple[int, str]] = {}
    for label, below in enumerate(_class_folders(folder, names)):
        count = 0
        for path in _image_files(below):
            name = f"{below.name}/{path.name}"
            image, changed = _image(path, name, how)
            digest = hashlib.sha256(image.tobytes()).hexdigest()
            if digest in class_of:
                other, first = class_of[digest]
                if other != label:
                    raise DataError(
                        f"{name} is the same image as {first}, of another class; accepted: one "
                        "class each"
                    )
                twice.append(name)
                continue
            class_of[digest] = label, name
            images.append(image)
            labels.append(label)
            files.append(name)
            resized, count = resized + changed, count + 1
        if count < LEAST_ROWS:
            raise DataError(
                f"{folder.name}/{below.name} has {count} images; accepted: {LEAST_ROWS} or more of "
                "each class"
            )
    rows = ImageDataset(
        folder.name, "clean", np.stack(images), np.array(labels, np.int64), names, "folder"
    )
    return CleanImages(rows, tuple(files), resized, tuple(twice))


def _class_folders(folder: Path, names: tuple[str, ...]) -> list[Path]:
    """The sub-folder of each class; a name's "/" and spaces are read as "_" where need be."""
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; accepted: one with a folder per class")
    entries = sorted(p for p in folder.iterdir() if not _ignored(p))
    loose = [p.name for p in entries if not p.is_dir()]
    if loose:
        raise DataError(
            f"{folder.name}/{loose[0]} lies in no class's folder; accepted: folders named "
            f"{shown(', '.join(names))}"
        )
    by_name = {p.name: p for p in entries}
    written = {name: name if name in by_name else name.replace("/", "_").replace(" ", "_")
               for name in names}  # fmt: skip
    unknown = sorted(by_name.keys() - set(written.values()))
    if unknown:
        raise DataError(
            f"{folder.name}/{unknown[0]} is named like no class of the model; accepted: "
            f"{shown(', '.join(names))}"
        )
    absent = [name for name in names if written[name] not in by_name]
    if absent:
        raise DataError(
            f"{folder.name} has no folder for class {', '.join(absent[:5])}; accepted: one for "
            f"each of the model's {len(names)} classes"
        )
    return [by_name[written[name]] for name in names]


def _ignored(path: Path) -> bool:
    return path.name.startswith(".") or path.name in IGNORED


def _image_files(folder: Path) -> list[Path]:
    paths = sorted(p for p in folder.iterdir() if not _ignored(p))
    for path in paths:
        if path.is_dir() or path.suffix.lower() not in SUFFIXES:
            raise DataError(
                f"{folder.name}/{path.name} is no image; accepted: files in {', '.join(SUFFIXES)}"
            )
    return paths


def _image(path: Path, name: str, how: Preprocessing) -> tuple[np.ndarray, bool]:
    """One image (H, W, C) uint8 as the network wants it, and whether its size was changed."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            # A telephone's photograph (MPO) has small pictures of itself behind it.
            frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
            image.load()
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, EOFError,
            Image.DecompressionBombError) as error:  # fmt: skip
        reason = type(error).__name__
        raise DataError(f"{name} cannot be read ({reason}); accepted: a whole image") from None
    if frames > 1:
        raise DataError(f"{name} has {frames} frames; accepted: one image a file")
    if image.mode.startswith(("I", "F")):
        raise DataError(f"{name} has pixels of mode {image.mode}; accepted: 8 bits a channel")
    return _fitted(image, how), image.size != (how.width, how.height)


def _fitted(image, how: Preprocessing) -> np.ndarray:
    """A PIL image as (H, W, C) uint8: resized, and its middle cut out."""
    image = image.convert("L" if how.channels == 1 else "RGB")
    width, height = image.size
    if isinstance(how.resize, int):
        size = tuple(how.resize * side // min(width, height) for side in (width, height))
    else:
        size = how.resize[::-1]
    image = image if image.size == size else image.resize(size, how.resample)
    if size != (how.width, how.height):
        left, top = (size[0] - how.width) // 2, (size[1] - how.height) // 2
        image = image.crop((left, top, left + how.width, top + how.height))
    return np.asarray(image, np.uint8).reshape(how.height, how.width, how.channels)
