"""GA, NPO, DGA and RGA: unlearning a backdoor by gradient ascent, and how not to shift it.

Every loss here returns the scalar to be *minimised*. Shapes: ``logits`` (B, K) float of the current
model on triggered texts, ``ref_logits`` the poisoned model's on the same texts, ``labels`` (B,)
int64 the attacker's labels.

Source: "Don't Shift the Trigger: Robust Gradient Ascent for Backdoor Unlearning" (RGA, ICLR 2026).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import registry
from ..checks import above_zero, not_negative, one_of
from ..data.text import TextDataset
from ..models.text import TextClassifier, text_classifier
from ..settings import METHODS, AscentSettings
from ..training import fitting
from ..training import text as text_training
from ..training.fitting import TrainSettings
from ..training.text import Batch, Batches, Pairs


def ga_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Gradient ascent: minus the mean cross-entropy, in nats. Source: Eq. (3), RGA."""
    return -F.cross_entropy(logits, labels)


def npo_loss(logits: Tensor, ref_logits: Tensor, labels: Tensor, beta: float) -> Tensor:
    """Negative preference optimisation: ``(2/β) · mean log(1 + (π/π_ref)^β)``.

    π and π_ref are the probabilities of the attacker's label. The gradient is GA's times
    ``2 r^β / (1 + r^β)`` with r = π/π_ref: GA's own at r = 1, and it fades as r falls.

    Source: Zhang et al. (2024), Eq. (3). β is 0.1 there; RGA's released code uses 1.
    """
    if not beta > 0:
        raise ValueError(f"beta is {beta!r}; accepted: above 0")
    log_ratio = -F.cross_entropy(logits, labels, reduction="none")
    log_ratio = log_ratio + F.cross_entropy(ref_logits, labels, reduction="none")  # (B,)
    return (2 / beta) * F.softplus(beta * log_ratio).mean()


@torch.no_grad()
def rga_weight(
    logits: Tensor, ref_logits: Tensor, alpha: float, direction: str = "current"
) -> Tensor:
    """RGA's λ = exp(-α · KL), one scalar per batch, in (0, 1], without gradient.

    ``direction="current"`` is the paper's KL(current ‖ poisoned), Eq. (7); ``"poisoned"`` is the
    released code's KL(poisoned ‖ current). KL is in nats, averaged over the batch.
    """
    if not alpha >= 0:
        raise ValueError(f"alpha is {alpha!r}; accepted: 0 or more")
    current, poisoned = F.log_softmax(logits, -1), F.log_softmax(ref_logits, -1)
    one_of("direction", direction, ("current", "poisoned"))
    if direction == "current":
        divergence = F.kl_div(poisoned, current, log_target=True, reduction="batchmean")
    else:
        divergence = F.kl_div(current, poisoned, log_target=True, reduction="batchmean")
    # Rounding can leave the KL of two equal distributions a hair below 0.
    return torch.exp(-alpha * divergence.clamp(min=0))


def drift(model: nn.Module, base: Mapping[str, Tensor], norm: str = "global") -> Tensor:
    """Distance of a model's parameters from a base's: RGA's term iii without its factor β.

    Args:
        model: usually the backbone, since the clean pre-trained base has no head.
        base: parameter name → tensor, a subset of the model's parameters.
        norm: ``global`` is one L2 norm of the whole difference (paper, Eq. 6), ``tensor`` the sum
            of one norm per tensor (released code), up to √(number of tensors) times larger, and
            less the more unequally far the tensors have moved.

    Returns:
        Scalar ≥ 0 with gradient; the gradient at distance 0 is 0.
    """
    parameters = dict(model.named_parameters())
    if unknown := base.keys() - parameters.keys():
        raise ValueError(f"base has parameters that the model lacks: {', '.join(sorted(unknown))}")
    norms = torch.stack(
        [torch.linalg.vector_norm(parameters[name] - tensor) for name, tensor in base.items()]
    )
    one_of("norm", norm, ("global", "tensor"))
    return torch.linalg.vector_norm(norms) if norm == "global" else norms.sum()


@dataclass(frozen=True, kw_only=True)
class UnlearnSettings(AscentSettings):
    """How ``unlearn`` unlearns; a recipe, ``trials.text.TextUnlearning``, says it as well.

    Attributes:
        train: the loop's settings; an epoch is one pass over the forget set.
    """

    train: TrainSettings = TrainSettings(epochs=30)

    def __post_init__(self):
        not_negative(self, "alpha", "beta")
        above_zero(self, "npo_beta")


def forget_term(
    method: str, logits: Tensor, ref_logits: Tensor, labels: Tensor, settings: UnlearnSettings
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return what a method minimises on the forget batch, and λ to log where it has one.

    Source: term i of Eq. (3) for ga, of Eq. (6) for dga and rga.
    """
    loss = registry.find("unlearning", method)
    if loss:
        return loss(logits, ref_logits, labels, settings)
    if method == "npo":
        return npo_loss(logits, ref_logits, labels, settings.npo_beta), {}
    if method == "ga":
        return ga_loss(logits, labels), {}
    direction = "poisoned" if method == "rga-code" else settings.direction
    lam = rga_weight(logits, ref_logits, settings.alpha, direction)
    return lam * ga_loss(logits, labels), {"lam": lam}


def unlearning_loss(
    method: str, ref_logits: Tensor, base: Mapping[str, Tensor], settings: UnlearnSettings
) -> fitting.Loss:
    """Make the loss that ``fit`` minimises over (forget batch, retain batch) pairs.

    ``ref_logits`` (N, K): the poisoned model's logits on the whole forget set, made once in eval
    mode. Source: Eq. (3) for ga, Eq. (6) for rga, Eq. (6) without term iii for dga.
    """
    norm = "tensor" if method == "rga-code" else settings.drift_norm
    has_drift = method in ("rga", "rga-code") and settings.beta > 0

    def loss(model: TextClassifier, batch: tuple[Batch, Batch]):
        forget, retain = batch
        logits = model(forget.input_ids, forget.attention_mask).float()
        reference = ref_logits[torch.as_tensor(forget.rows, device=ref_logits.device)]
        value, logs = forget_term(method, logits, reference, forget.labels, settings)
        retain_loss, _ = text_training.cross_entropy(model, retain)
        logs["poisoned_loss"] = F.cross_entropy(logits.detach(), forget.labels)
        logs["retain_loss"] = retain_loss.detach()
        value = value + retain_loss
        if has_drift:
            distance = drift(model.backbone, base, norm)
            logs["drift"] = distance.detach()
            value = value + settings.beta * distance
        return value, logs

    return loss


def push(method: str, poisoned_loss: Tensor, settings: UnlearnSettings, ref_loss: float) -> Tensor:
    """How hard a method's forget term pushes a two-class model away from the attacker's label.

    Args:
        poisoned_loss: (G,) cross-entropy in nats of the attacker's label, at which to ask; 0 is
            the poisoned model, log 2 an undecided one, 10 one that has gone over to the other side.
        ref_loss: the poisoned model's own value of it.

    Returns:
        (G,) derivative of the minimised term with respect to the log-odds of the attacker's label:
        positive values push it down. Method "ce" is cross-entropy to the *other* label, what
        Proposition 1 rewrites gradient ascent into, without its term R.
    """
    pushes = []
    for value in poisoned_loss.double():
        odds = _log_odds(value).requires_grad_()
        logits = torch.stack([torch.zeros_like(odds), odds])[None]  # (1, 2), class 1 the attacker's
        reference = torch.stack([torch.zeros(()).double(), _log_odds(torch.tensor(ref_loss))])[None]
        if method == "ce":
            term = F.cross_entropy(logits, torch.tensor([0]))
        else:
            term, _ = forget_term(method, logits, reference, torch.tensor([1]), settings)
        pushes.append(torch.autograd.grad(term, odds)[0])
    return torch.stack(pushes)


def _log_odds(loss: Tensor) -> Tensor:
    """Log-odds of a label whose cross-entropy is ``loss``: log p / (1 - p) with p = exp(-loss)."""
    return -loss - torch.log(-torch.expm1(-loss.double()))


def unlearn(
    model: TextClassifier,
    forget: TextDataset,
    retain: TextDataset,
    method: str,
    settings: UnlearnSettings,
    base: Mapping[str, Tensor] | None = None,
    evaluate: Callable[[nn.Module, int], dict] | None = None,
) -> tuple[TextClassifier, list[dict]]:
    """Unlearn the forget set from a poisoned model; the model given is not changed.

    Args:
        forget: the rows held to be poisoned, with the attacker's labels. retain: the others.
        method: ga, npo, dga, rga or rga-code.
        base: backbone parameters of the clean pre-trained model, needed by rga and rga-code.
        evaluate: called with (model, epoch) after each epoch.

    Returns:
        The unlearned model, and per epoch ``poisoned_loss`` and ``retain_loss`` (nats, mean over
        the epoch's batches), ``lam``, ``drift``, ``seconds`` and what ``evaluate`` returned.

    Raises:
        ValueError: unknown method, an empty forget or retain set, or a missing base.
    """
    one_of("method", method, METHODS)
    for name, dataset in (("forget", forget), ("retain", retain)):
        if not len(dataset):
            raise ValueError(f"the {name} set is empty; accepted: one row or more")
    if method.startswith("rga") and settings.beta and not base:
        raise ValueError(f"method {method} with beta > 0 needs base, the clean backbone's weights")
    device = next(model.parameters()).device
    sets = [
        Batches(
            text_training.encode(dataset.texts, dataset.labels, model.tokenizer, device=device),
            settings.train.batch_size,
        )
        for dataset in (forget, retain)
    ]
    reference = text_training.predict(model, sets[0].data, settings.train.precision).to(device)
    loss = unlearning_loss(method, reference, base or {}, settings)
    unlearned = copy.deepcopy(model)
    history = fitting.fit(unlearned, Pairs(*sets), loss, settings.train, evaluate)
    return unlearned, history


def clean_base(model: str, num_labels: int, device: torch.device | str) -> dict[str, Tensor]:
    """Return the backbone parameters of the clean pre-trained model ``model``."""
    backbone = text_classifier(model, num_labels, seed=0).backbone.to(device)
    return {name: tensor.detach() for name, tensor in backbone.named_parameters()}
