"""What every key is called on a page, of what kind it is, and its colour where it has one.

A method, attack, detector, data set, model or metric has one key in settings, recipes and rows, and
one label in all tables and figures of the book. Imports nothing, as the site has no NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass

# of seaborn's "colorblind"
BLUE, ORANGE, GREEN, BROWN, GREY = "#0173b2", "#de8f05", "#029e73", "#ca9161", "#949494"


@dataclass(frozen=True)
class Name:
    """What a key is called on a page.

    Attributes:
        label: the field's spelling. kind: one of ``KINDS``. colour: "#rrggbb", or None.
    """

    label: str
    kind: str
    colour: str | None = None


LABELS_BY_KIND = {
    "method": {
        "none": "no defence", "victim": "no defence", "poisoned": "poisoned",
        "clean": "clean model", "base": "clean base", "retrain": "ReTrain",
        # unlearning by a loss
        "ga": "GA", "npo": "NPO", "dga": "DGA", "rga": "RGA", "rga-code": "RGA (code)",
        "ga-r": "GA, response", "npo-r": "NPO, response", "rga-r": "RGA, response",
        # token embeddings
        "btu": "BTU", "btu-code": "BTU, code's threshold", "btu-loop": "BTU, released loop",
        "btu-dim": "BTU, mean of entries",
        "btu+rga": "BTU, then RGA", "btu-code+rga": "BTU (code), then RGA",
        "pr-1": "PR-1", "pr-2": "PR-2", "pn": "PN", "recover": "recovery alone",
        "st": "ST", "tg": "TG", "dpoe": "DPOE",
        **{f"layer-{number}": f"layer {number}" for number in range(1, 25)},
        # chat models
        "sft": "SFT", "dpo": "DPO", "nad": "NAD", "fine-mixing": "Fine-mixing",
        "sande-p": "SANDE-P", "sande": "SANDE", "osft": "OSFT",
        # images
        "ft": "FT", "nc": "NC", "bti-dbf": "BTI-DBF", "anp": "ANP", "ep": "EP", "rnp": "RNP",
        "anp-code": "ANP (code)", "ep-code": "EP (code)", "bnp-code": "BNP (code)",
        "rnp-code": "RNP (code)", "rnp-silent": "RNP (code), shifts too",
        "nc-code": "NC (code)", "sau-code": "SAU (code)", "pam-code": "PAM (code)",
        "bti-dbf-code": "BTI-DBF (code)",
        "clp": "CLP", "i-bau": "I-BAU", "i-bau-code": "I-BAU (code)", "sau": "SAU", "pam": "PAM",
        "ibu": "IBU (bound)", "bi-bau-u": "BI-BAU (U)", "bi-bau-t": "BI-BAU (T)",
        "cleanclip": "CleanCLIP",
        "at": "base AT", "at-a": "AT + A", "at-b": "AT + B",
    },
    "attack": {
        "badnets": "BadNets", "addsent": "AddSent", "hiddenkiller": "HiddenKiller",
        "stylebkd": "Stylebkd", "sos": "SOS",
        "blended": "Blended", "wanet": "WaNet", "refool": "Refool", "iad": "IAD", "issba": "ISSBA",
        "sig": "SIG", "narcissus": "Narcissus", "adap-blend": "Adap-Blend",
        "adap-patch": "Adap-Patch", "adap-blend+": "enhanced Adap-Blend",
        "adap-patch+": "enhanced Adap-Patch", "badclip": "BadCLIP",
        "single": "one trigger", "all2one-3": "All2One, 3 triggers",
        "all2one-5": "All2One, 5 triggers", "all2all-2": "All2All, 2 triggers",
    },
    "detector": {
        "oracle": "oracle", "spoilt": "spoilt mask", "cube": "CUBE (RGA's recipe)",
        "cube-code": "CUBE (RGA's code)", "cube-original": "CUBE (original)",
        "cube-pca": "CUBE (PCA alone)", "activation": "activation clustering",
        "spectral": "spectral signatures", "onion": "ONION", "onion-words": "ONION (words)",
        "strip": "STRIP", "rap": "RAP", "bki": "BKI", "moderate": "MF",
    },
    "data set": {
        "sst2": "SST-2", "hsol": "HSOL", "agnews": "AG News", "agnews-8k": "AG News (8,000)",
        "olid": "OLID", "imdb": "IMDB", "imdb-2500": "IMDB (2,500)",
        "toy-reviews": "toy reviews", "toy-topics": "toy topics",
        "alpaca": "Alpaca", "alpaca-9k": "Alpaca (9,000)", "dolly": "Dolly",
        "dolly-3k": "Dolly (3,000)", "openorca": "OpenOrca", "toy-chat": "toy chat",
        "toy-tasks": "toy tasks", "arc_easy": "ARC-Easy", "arc_challenge": "ARC-Challenge",
        "mmlu": "MMLU", "toy-choices": "toy questions",
        "cifar10": "CIFAR-10", "cifar10-10k": "CIFAR-10 (10,000)", "gtsrb": "GTSRB",
        "gtsrb-3k": "GTSRB (3,000)", "tiny-imagenet": "Tiny ImageNet",
        "imagenet": "ImageNet", "imagenet-50k": "ImageNet (50,000)",
        "cc3m": "CC3M", "cc3m-50k": "CC3M (50,000)",
        "digits": "digits",
    },
    "model": {
        "minilm": "MiniLM-L6", "tiny": "tiny", "tiny-causal": "tiny, causal",
        "distilbert": "DistilBERT", "bert": "BERT-base", "roberta": "RoBERTa-base", "gpt2": "GPT-2",
        "small": "small", "small-causal": "small, causal", "medium": "medium",
        "llama2": "Llama-2 7B", "qwen1.5-4b": "Qwen1.5-4B",
        "smollm2": "SmolLM2",
        "resnet18": "ResNet-18", "preresnet18": "PreAct ResNet-18", "wrn16": "WRN-16",
        "vgg19": "VGG-19", "vit": "ViT", "clip": "CLIP's ViT", "cnn": "CNN",
        "whitened": "whitened CNN",
        # as the papers' tables spell them
        "BERT": "BERT-base", "DistilBert": "DistilBERT", "Llama2": "Llama-2 7B",
    },
    "metric": {
        "cacc": "CACC", "dev_cacc": "dev CACC", "lfr": "LFR", "pacc": "PACC", "dpacc": "ΔPACC",
        "error": "LFR (any error)",
        "acc": "CA", "asr": "ASR", "r_asr": "R-ASR", "q_asr": "Q-ASR", "bec": "BEC",
        "image_r1": "image R@1", "image_r5": "image R@5", "text_r1": "text R@1",
        "text_r5": "text R@5",
        "poisoned_loss": "poisoned loss (nats)", "retain_loss": "retain loss (nats)", "lam": "λ",
        "mask_precision": "precision", "mask_recall": "recall", "f1": "F1",
        "fpr": "false positives", "auroc": "AUROC", "ap": "average precision",
        "ppl": "perplexity", "triggered_ppl": "with the trigger", "rouge": "ROUGE-L",
        "psnr": "PSNR (dB)", "shift": "largest shift", "seconds": "seconds",
    },
    "column": {
        "states": "states", "alpha": "α", "eta": "η", "parrot_position": "position",
        "poisons": "poisons", "relabelled": "relabelled",
    },
    "preset": {"smoke": "smoke", "paper": "paper"},  # small is a model too
}  # fmt: skip

# What a colour means in every figure, drawing and component of the book (the same as
# book/_static/components.css), and the colours of verdicts, which are others and never stand alone.
MEANINGS = {
    "clean": BLUE, "poisoned": ORANGE, "unlearned": "#8a5fb0", "reference": BROWN, "paper": GREY,
}  # fmt: skip
VERDICTS = {"holds": GREEN, "fails": "#c8412b", "undecided": "#b3a000"}
INK, TEAL = "#262626", "#17a5b8"  # of what none of the five is said of

# Models that one method or another has unlearned: shades of the one violet, the first its own. A
# mark of its own tells each line or point of a figure apart as well.
UNLEARNED = (
    "#8a5fb0", "#2f1b4d", "#d977b6", "#a6337f", "#b79ad6", "#5b3f9e", "#7a1f5c",
)  # fmt: skip
STANDS_FOR = {
    "none": "poisoned", "victim": "poisoned", "poisoned": "poisoned",
    "clean": "clean", "base": "clean", "retrain": "reference", "ibu": "reference",
}  # fmt: skip
# Methods that stand in one figure have shades of their own; the chapter's comes first.
FAMILIES = (
    ("rga", "ga", "npo", "dga", "rga-code"),
    ("ga-r", "npo-r", "rga-r"),
    ("btu", "btu-code", "btu-loop", "btu-dim", "pn", "pr-1", "pr-2"),
    ("sande", "sande-p", "osft", "sft", "dpo", "nad", "fine-mixing"),
    ("bi-bau-u", "bi-bau-t", "ft", "sau", "cleanclip", "at", "at-b"),
)
COLOURS = {
    **{key: MEANINGS[meaning] for key, meaning in STANDS_FOR.items()},
    **{key: shade for family in FAMILIES for key, shade in zip(family, UNLEARNED, strict=False)},
    # on clean rows; on triggered ones, after unlearning and after two attempts to bring it back
    "acc": BLUE, "asr": ORANGE, "r_asr": "#8f4f00", "q_asr": "#f2c078",
}  # fmt: skip

# A part of a data set has a name of its own, since its numbers are not the whole's: part → whole.
PART_OF = {
    "agnews-8k": "agnews", "imdb-2500": "imdb", "alpaca-9k": "alpaca", "dolly-3k": "dolly",
    "cifar10-10k": "cifar10", "gtsrb-3k": "gtsrb", "imagenet-50k": "imagenet", "cc3m-50k": "cc3m",
}  # fmt: skip

KINDS = tuple(LABELS_BY_KIND)
NAMES: dict[str, Name] = {
    key: Name(label, kind, COLOURS.get(key))
    for kind, labels in LABELS_BY_KIND.items()
    for key, label in labels.items()
}
COLOURS_BY_LABEL = {
    NAMES[key].label: shade for key, shade in COLOURS.items() if NAMES[key].kind == "method"
}


def label(key: str) -> str:
    """The field's spelling of a key; the key itself where it has none."""
    return NAMES[key].label if key in NAMES else key


def colour(key: str, default: str | None = None) -> str | None:
    """The colour that a key, or a method's label, has in every figure, or ``default``."""
    return COLOURS.get(key, COLOURS_BY_LABEL.get(key, default))


def whole(dataset: str) -> str:
    """The data set that a part is drawn from, as papers' tables name it; else the set itself."""
    return PART_OF.get(dataset, dataset)
