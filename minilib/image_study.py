"""The image attacks of chapters 01 and 02: their victims, and how visible their triggers are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .attacks.images import CLEAN_LABEL, psnr
from .image_victims import ImageScenario, attacked, audited, image_scenario, image_victim
from .metrics import delta_pacc
from .settings import Pictures, split
from .train import TrainSettings
from .vision import ImageClassifier, pixels


@dataclass(frozen=True)
class Pictured:
    """One attack on images: its data, the victim, and the same network trained without poison."""

    case: ImageScenario
    victim: ImageClassifier
    clean: ImageClassifier


def image_training(cfg: Pictures, seed: int) -> tuple[TrainSettings, dict]:
    """Return how victims are trained, and their augmentation (``crop``, ``flip``)."""
    settings = TrainSettings(
        cfg.image_epochs, cfg.image_lr, cfg.image_batch, schedule="linear", seed=seed
    )
    mirrored = cfg.image_dataset.startswith(("cifar", "tiny"))  # a mirrored digit is another sign
    return settings, {"crop": 4, "flip": mirrored} if cfg.image_augment else {}


def pictured(cfg: Pictures, seed: int) -> dict[str, Pictured]:
    """Poison the image set and train victims: attack → Pictured; empty where images are left out.

    The victims are those of chapter 06, taken from the cache if that chapter has run.
    """
    if cfg.image_dataset == "none":
        return {}
    settings, crop = image_training(cfg, seed)
    by_attack = {}
    for attack in split(cfg.image_attacks):
        case = image_scenario(cfg.image_dataset, attack, seed=seed)
        victim, _ = attacked(case, cfg.image_model, settings, cfg.image_width, **crop)
        clean, _ = image_victim(case.clean, cfg.image_model, settings, cfg.image_width, **crop)
        by_attack[attack] = Pictured(case, victim, clean)
    return by_attack


def image_rows(by_attack: Mapping[str, Pictured]) -> list[dict]:
    """Measure each victim and the clean model; one row per attack, for the record.

    Returns:
        Dicts of ``picture_attack``, ``relabelled`` (whether poisons got another label),
        ``poisons``, ``psnr`` (dB, median over the test images), and in percent ``acc``, ``asr`` and
        ``pacc`` of the victim, ``clean_acc``, ``clean_asr`` and ``clean_pacc`` of the clean model,
        and ``dpacc``. The key ``attack`` stays the texts', lest a table mix the two.
    """
    rows = []
    for attack, one in by_attack.items():
        own, ideal = (audited(one.case, model) for model in (one.victim, one.clean))
        before, after = (pixels(part.images) for part in (one.case.test, one.case.triggered))
        rows.append(
            {
                "picture_attack": attack,
                "relabelled": attack not in CLEAN_LABEL,
                "poisons": int(one.case.poisoned.mask.sum()),
                "psnr": float(psnr(before, after).median()),
                **{name: own[name] for name in ("acc", "asr", "pacc")},
                **{f"clean_{name}": ideal[name] for name in ("acc", "asr", "pacc")},
                "dpacc": delta_pacc(own["pacc"], ideal["pacc"]),
            }
        )
    return rows
