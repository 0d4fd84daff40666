"""Trials on what detectors say of rows that are known to be clean."""

from __future__ import annotations

from functools import partial

from .. import ledger
from ..ledger import recipe, trial
from .images import ImageClean, ImageVictim, case_of, image_victim
from .text import Detector, TextVictim, asked_rows, cube_recipe, detector, text_victim


@recipe
class DetectorNull:
    """A detector among whose rows lie some that are known to be clean; of texts or images.

    Attributes:
        victim: trained on poisoned rows, or on clean ones: then every accusation is false.
        level: p-value up to which a row is accused once the detector is calibrated.
    """

    victim: TextVictim | ImageVictim
    detector: Detector
    level: float = 0.05


@trial(version=1)
def detector_null(one: DetectorNull) -> list[dict]:
    """Calibrate a detector on known-clean rows; one row.

    Half of the dev rows (of images: of the test set) are laid among the training rows, the others
    are what the detector may set its thresholds by.

    Returns ``detector``; in percent: ``false_alarms`` of the known-clean rows, by the detector's
    own rule; ``fpr`` and ``recall`` of the training rows by that rule; ``calibrated_fpr`` and
    ``calibrated_recall`` at ``level`` (None without a score); ``set_p``, see
    ``detection.calibration.Calibration``; numbers ``rows``, ``poisons`` and ``clean``. Without
    poison there is no recall: None.
    """
    from ..detection import DefenderData
    from ..detection.calibration import calibrate
    from ..detection.common import quality

    network, rows, truth, clean, states = _audited(one.victim)
    own, laid = clean.select(range(0, len(clean), 2)), clean.select(range(1, len(clean), 2))
    model = getattr(one.victim, "model", "")
    known = DefenderData(own, None, model if isinstance(model, str) else "", one.detector.seed)
    outcome = calibrate(_detector(one.detector), network, rows, known, laid, states)
    raw = quality(outcome.mask, truth)
    scored = quality(outcome.accused(one.level), truth) if outcome.p is not None else {}
    return [
        {
            "detector": one.detector.name,
            "false_alarms": outcome.false_alarms,
            "fpr": raw["fpr"],
            "recall": raw["recall"],
            "calibrated_fpr": scored.get("fpr", float("nan")),
            "calibrated_recall": scored.get("recall", float("nan")),
            "set_p": outcome.set_p,
            "rows": len(rows),
            "poisons": int(truth.sum()),
            "clean": outcome.clean,
            "seconds": outcome.seconds,
        }
    ]


def _detector(one: Detector):
    """As ``text.detector``; RGA's code reads its own map here, not the one of another trial."""
    from ..detection import detect_cube

    if one.name.startswith("cube"):
        return partial(detect_cube, recipe=cube_recipe(one))
    return detector(one)


def _audited(one: TextVictim | ImageVictim):
    """A victim's network, its training rows, which are poisoned, clean rows, joined → states."""
    import numpy as np

    from ..detection import hidden_states

    if isinstance(one, TextVictim):
        network = text_victim(one)[0]
        rows, truth, clean = asked_rows(one.data)
        return network, rows, truth, clean, partial(hidden_states, network)
    from ..data.images import load_images
    from ..training.images import predict_images

    network, _ = image_victim(one)
    if isinstance(one.data, ImageClean):
        rows, clean = (load_images(one.data.dataset, split) for split in ("train", "test"))
        truth = np.zeros(len(rows), bool)
        for part in (rows, clean):
            ledger.note(part.info())
    else:
        case = case_of(one.data)
        rows, truth, clean = case.poisoned.dataset, case.poisoned.mask, case.test
    # Not of each set that is asked about: the joined rows are a new set every time.
    features = partial(predict_images, network, output=network.features)
    return network, rows, truth, clean, lambda joined: features(joined).numpy()
