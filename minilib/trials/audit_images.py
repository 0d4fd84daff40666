"""Trials of the audit of image classifiers, and of what it finds in victims made elsewhere."""

from __future__ import annotations

from functools import lru_cache

from .. import ledger
from ..ledger import cached, reads, recipe, trial

# ---------------------------------------------------------------- what is audited


@recipe
class ForeignImages:
    """A plain network that this library's training loop has not seen, on some classes of a set.

    Attributes:
        dataset: as ``data.images.load_images`` knows it. attack: ``none``, or as
            ``make_image_trigger`` does. classes: how many, drawn by their number.
        seed: of the poison, the weights and the batches. target: class of the trigger.
        rate: share of the other classes' rows that are poisoned. width: channels of the first
            convolution.
    """

    dataset: str
    attack: str
    seed: int
    classes: int = 10
    target: int = 0
    rate: float = 0.1
    width: int = 8
    epochs: int = 15
    lr: float = 1e-2

    def __post_init__(self):
        poisoned = ("rate", "target") if self.attack != "none" else ()
        reads(self, *poisoned, of=("rate", "target"))


@recipe
class ImageFile:
    """Somebody's model, pinned by its content.

    Attributes:
        path: a folder of transformers' format, or a state dict in safetensors; of the latter
            ``architecture``, ``mean``, ``std``, ``size`` and ``classes`` (in the order of its
            logits) say what the file does not; of a folder ``classes`` alone may. sha256: of the
            file, or of the folder's content, with that of an adapter's base where it is a folder.
    """

    path: str
    architecture: str = ""
    mean: tuple = ()
    std: tuple = ()
    size: int = 0
    classes: tuple = ()
    sha256: str = ""

    def __post_init__(self):
        if not self.sha256:
            from ..models.names import local_base

            object.__setattr__(self, "sha256", content_of(self.path, *local_base(self.path)))


@recipe
class CleanFolder:
    """A folder of clean images, one sub-folder a class, pinned by its content."""

    path: str
    sha256: str = ""

    def __post_init__(self):
        if not self.sha256:
            object.__setattr__(self, "sha256", content_of(self.path))


def content_of(*paths: str) -> str:
    """Digest of files, or of all files below folders with their names; "" where there is none."""
    import hashlib
    from pathlib import Path

    total, there = hashlib.sha256(), False
    for place in (Path(path).expanduser() for path in paths):
        files = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file())
        for file in files:
            with open(file, "rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
            total.update(f"{file.relative_to(place.parent)}\0{digest}\n".encode())
        there |= bool(files)
    return total.hexdigest()[:16] if there else ""


@recipe
class ImageAudit:
    """An audit of an image classifier.

    Attributes:
        model: a model from outside, or a victim made for the purpose. clean: images; None of a
            victim, whose test images they are.
        references … batch_size: see ``audit.images.ImageAuditSettings``; steps and images of the
            search, epochs and batch_size of the references' training.
    """

    model: ForeignImages | ImageFile
    clean: CleanFolder | None
    seed: int
    references: int = 20
    steps: int = 150
    images: int = 16
    epochs: int = 40
    batch_size: int = 32


@recipe
class ImageAuditReference:
    """A network of the audited one's architecture, trained on clean images and searched.

    It does not depend on the audited weights, so that audits of models of one shape share it.
    """

    audit: ImageAudit
    number: int


@recipe
class ImageAuditVerdict:
    """The search of the model beside those of the references."""

    audit: ImageAudit


@recipe
class ImageAuditCleaned:
    """The model after the trigger that was found was unlearned."""

    audit: ImageAudit
    epochs: int = 30
    lr: float = 0.01


@recipe
class ImageAuditUnlearning:
    """What remains after unlearning, with the trigger that was found, and with a known one."""

    cleaned: ImageAuditCleaned


# ---------------------------------------------------------------- victims from elsewhere


def _classes_of(one: ForeignImages):
    """Training and test rows of the victim's classes, which are drawn by their number alone."""
    from dataclasses import replace

    import numpy as np

    from ..data.images import load_images

    parts = []
    for split in ("train", "test"):
        rows = load_images(one.dataset, split)
        drawn = np.random.default_rng(one.classes).permutation(rows.num_classes)[: one.classes]
        kept = np.sort(drawn)
        rows = rows.select(np.isin(rows.labels, kept))
        names = tuple(rows.class_names[k] for k in kept)
        labels = np.searchsorted(kept, rows.labels)
        parts.append(replace(rows, labels=labels, class_names=names))
        ledger.note(rows.info())
    return parts


@lru_cache(maxsize=4)
def _case(one: ForeignImages):
    """Training rows, poisoned or not; test rows; those with the trigger, or None."""
    from ..attacks.images import CLEAN_LABEL, make_image_trigger, poison_images, trigger_images

    train, test = _classes_of(one)
    if one.attack == "none":
        return train, test, None
    trigger = make_image_trigger(one.attack, train, one.target, one.seed)
    label = "clean" if one.attack in CLEAN_LABEL else "dirty"
    poisoned = poison_images(train, trigger, one.target, one.rate, one.seed, label=label)
    return poisoned.dataset, test, trigger_images(test, trigger)


def plain_network(channels: int, classes: int, width: int):
    """Three convolutions and a linear layer, as a first lesson has them; the head is ``9``."""
    from torch import nn

    layers: list = []
    for inner, outer, stride in (
        (channels, width, 1), (width, 2 * width, 2), (2 * width, 4 * width, 2),
    ):  # fmt: skip
        layers += [nn.Conv2d(inner, outer, 3, stride, 1), nn.BatchNorm2d(outer), nn.ReLU()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, classes)]
    return nn.Sequential(*layers)


@cached(version=1)
@ledger.kept_in_memory(2)
def foreign_images(one: ForeignImages):
    """Train a victim in plain torch, or take it from the cache: (``ImageClassifier``, history)."""
    import torch

    from .. import cache
    from ..models.images import wrap

    train, _, _ = _case(one)

    def build():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(one.seed)
            network = plain_network(train.shape[0], train.num_classes, one.width)
        return wrap(network, str(len(network) - 1), 0.5, 0.25, train.shape)

    return cache.kept_model(one, build, lambda network: _plain_training(network, train, one))


def _plain_training(network, rows, one: ForeignImages) -> list[dict]:
    """Train as a notebook on the web does, on purpose without ``training.fitting.fit``."""
    import torch
    from torch.nn import functional

    images = torch.as_tensor(rows.images).permute(0, 3, 1, 2).float() / 255
    labels = torch.as_tensor(rows.labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(one.seed)
        optimizer = torch.optim.Adam(network.parameters(), one.lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, one.epochs)
        network.train()
        for _ in range(one.epochs):
            for index in torch.randperm(len(images)).split(64):
                if len(index) > 1:
                    loss = functional.cross_entropy(network(images[index]), labels[index])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
            schedule.step()
    network.eval()
    return [{"epochs": one.epochs}]


# ---------------------------------------------------------------- the steps


@ledger.kept_in_memory(2)
def audited(audit: ImageAudit):
    """The model and the clean images of an audit, and remarks on them."""
    from pathlib import Path

    from ..audit import image_inputs
    from ..models import loading

    if isinstance(audit.model, ForeignImages):
        model, _ = foreign_images(audit.model)
        return model, _case(audit.model)[1], None, ()
    named = audit.model
    if named.architecture:
        size = named.size
        outside = image_inputs.model_from_state(
            Path(named.path), named.architecture, named.mean, named.std, size, named.classes
        )
    else:
        outside = image_inputs.model_from_folder(Path(named.path), named.classes)
    outside.model.to(loading.default_device())
    clean = image_inputs.read_clean_images(Path(audit.clean.path), outside)
    ledger.note(clean.dataset.info())
    remarks = [*outside.remarks]
    if clean.resized:
        how = outside.preprocessing
        remarks.append(
            f"{clean.resized} of {len(clean.files)} images had another size than "
            f"{how.height} × {how.width}"
        )
    if clean.twice:
        remarks.append(f"{len(clean.twice)} images stand twice and count once: {clean.twice[0]} …")
    return outside.model, clean.dataset, outside, tuple(remarks)


def audit_settings(audit: ImageAudit):
    """``audit.images.ImageAuditSettings`` of a recipe."""
    from dataclasses import replace

    from ..audit.images import ImageAuditSettings

    default = ImageAuditSettings()
    return replace(
        default, references=audit.references, seed=audit.seed,
        search=replace(default.search, steps=audit.steps, images=audit.images),
        training=replace(default.training, epochs=audit.epochs, batch_size=audit.batch_size),
    )  # fmt: skip


def same_shape(audit: ImageAudit) -> ImageAudit:
    """The audit whose references an audit shares: that of a clean victim of seed 0."""
    model = audit.model
    if not isinstance(model, ForeignImages):
        return audit
    shape = ForeignImages(
        dataset=model.dataset, attack="none", seed=0, classes=model.classes, width=model.width,
        epochs=model.epochs, lr=model.lr,
    )  # fmt: skip
    return ImageAudit(
        model=shape, clean=None, seed=audit.seed, references=audit.references, steps=audit.steps,
        images=audit.images, epochs=audit.epochs, batch_size=audit.batch_size,
    )  # fmt: skip


@trial(version=1)
def image_audit_reference(one: ImageAuditReference) -> list[dict]:
    """Train and search a reference network; a row for each kind of trigger.

    Returns ``kind``, ``sizes`` (K; None where no trigger succeeded) and ``reference_acc``, percent.
    """
    import math

    from ..audit import images

    model, clean, _, _ = audited(one.audit)
    sizes, accuracy = images.reference_sizes(model, clean, audit_settings(one.audit), one.number)
    return [
        {
            "kind": kind,
            "sizes": [float(v) if math.isfinite(v) else None for v in values],
            "reference_acc": accuracy,
        }
        for kind, values in sizes.items()
    ]


@ledger.kept_in_memory(2)
def _findings(audit: ImageAudit):
    import numpy as np

    from ..audit import images

    model, clean, _, _ = audited(audit)
    settings, null, accuracies = audit_settings(audit), {kind: [] for kind in images.KINDS}, []
    shared = same_shape(audit)
    for number in range(1, audit.references + 1):
        rows = ledger.get(ImageAuditReference(audit=shared, number=number)).rows
        accuracies.append(rows[0]["reference_acc"])
        for row in rows:
            null[row["kind"]].append([np.inf if v is None else v for v in row["sizes"]])
    rows, _ = images.halves(clean, settings.search.held, audit.seed)
    triggers = images.searched(model, rows, settings, audit.seed)
    null = {kind: np.array(values) for kind, values in null.items()}
    return images.judged(model, clean, triggers, null, accuracies, settings)


@trial(version=1)
def image_audit_verdict(one: ImageAuditVerdict) -> tuple[list[dict], dict]:
    """Judge a model; rows by ``part``, and pictures of the triggers, (K, H, W, C) uint8 by kind.

    ``verdict``: p, kind and target of the trigger that stands out, accuracies in percent, ``said``;
    ``remark``: one a line; ``class``: see ``audit.images.ImageFindings``. Of victims the verdict
    has ``attack`` and whether the target is the trigger's: ``right``.
    """
    import numpy as np

    from ..audit import images

    audit = one.audit
    model, clean, _, remarks = audited(audit)
    images.check_accuracy(model, clean)
    found = _findings(audit)
    target = found.test.target
    head = {
        "part": "verdict", "p": found.test.p, "trigger_kind": found.test.kind,
        "found_class": clean.class_names[target], "statistic": found.test.statistic,
        "acc": found.accuracy, "reference_acc": found.reference_accuracy,
        "said": found.evidence.said, "num_classes": clean.num_classes, "clean_rows": len(clean),
    }  # fmt: skip
    if isinstance(audit.model, ForeignImages) and audit.model.attack != "none":
        head |= {"right": target == audit.model.target} | _known(model, audit.model)
    pictures = {
        kind: np.stack([trigger.picture(k) for k in range(clean.num_classes)])
        for kind, trigger in found.triggers.items()
    }
    notes = ({"part": "remark", "remark": note} for note in (*remarks, *found.notes))
    return [head, *notes, *({"part": "class", **row} for row in found.classes)], pictures


def _known(model, victim: ForeignImages) -> dict:
    """ASR of a victim's own trigger, in percent, for a model."""
    from ..metrics.reactivation import image_rates

    _, test, triggered = _case(victim)
    return {"true_asr": image_rates(model, test, triggered, victim.target)["asr"]}


@cached(version=1)
@ledger.kept_in_memory(1)
def image_audit_cleaned(one: ImageAuditCleaned):
    """Unlearn what was found: ``audit.images.Cleaned``."""
    from dataclasses import replace

    from ..audit import images

    model, clean, _, _ = audited(one.audit)
    settings = audit_settings(one.audit)
    plan = replace(settings.unlearning, epochs=one.epochs, lr=one.lr)
    return images.unlearn(model, clean, _findings(one.audit), replace(settings, unlearning=plan))


@trial(version=1)
def image_audit_unlearning(one: ImageAuditUnlearning) -> list[dict]:
    """Measure a model before and after unlearning; a row for each: ``when``.

    Returns ``acc``, ``asr`` and ``pacc`` with the trigger that was found, on images that were not
    used for unlearning; of victims ``true_asr``, with their own trigger. In percent.
    """
    cleaned, audit = image_audit_cleaned(one.cleaned), one.cleaned.audit
    model = audited(audit)[0]
    known = isinstance(audit.model, ForeignImages) and audit.model.attack != "none"
    rows = []
    for when, network, rates in (
        ("before", model, cleaned.before), ("after", cleaned.model, cleaned.after),
    ):  # fmt: skip
        rows.append({"when": when, **rates} | (_known(network, audit.model) if known else {}))
    return rows


def save_cleaned(one: ImageAuditCleaned, out) -> str:
    """Write the cleaned model as the audited one came, into a folder; returns where it is.

    Raises:
        ValueError: a victim, which came from no file.
    """
    from pathlib import Path

    outside = audited(one.audit)[2]
    if outside is None:
        raise ValueError("the model was made here; accepted: one from a folder or a file")
    return str(outside.save(image_audit_cleaned(one).model, Path(out)))
