"""CLIP, images and captions in one space: a small one, and any from a folder or the Hub."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import loading, names
from .images import ImageClassifier, check_images
from .loading import ModelError

PAD, START, UNKNOWN, END = range(4)  # token numbers of the small CLIP; words come after them
LONGEST = 16  # tokens of a caption of the small CLIP, the two at its ends counted
MOST_CAPTIONS = 1024  # that are encoded at once
# The pixels that OpenAI's CLIP was trained on, in units of 1 (= 255).
OPENAI_MEAN, OPENAI_STD = (0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)
STEEPEST = 100.0  # largest logit scale, as in the training of CLIP


class Tokens(Protocol):
    """What turns captions into token numbers (M, L) int64 and a mask of the same shape."""

    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]: ...


def check_captions(captions: Sequence[str]) -> None:
    """Raise ValueError where there is no caption, or one without a word."""
    if not len(captions):
        raise ValueError("no captions; accepted: one or more")
    for caption in captions:
        if not caption.strip():
            raise ValueError(f"caption {caption!r} is empty; accepted: one word or more")


class WordTokens:
    """A vocabulary of whole words, made from captions: lower case, split at blanks.

    A word that no caption had is UNKNOWN; a caption of such words alone is refused.
    """

    def __init__(self, captions: Sequence[str]):
        check_captions(captions)
        words = sorted({word for caption in captions for word in caption.lower().split()})
        self.numbers = {word: number for number, word in enumerate(words, END + 1)}

    def __len__(self) -> int:
        return END + 1 + len(self.numbers)

    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        check_captions(captions)
        ids = torch.full((len(captions), LONGEST), PAD)
        for row, caption in zip(ids, captions, strict=True):
            numbers = [self.numbers.get(word, UNKNOWN) for word in caption.lower().split()]
            if set(numbers) == {UNKNOWN} or len(numbers) > LONGEST - 2:
                raise ValueError(
                    f"caption {caption!r}; accepted: up to {LONGEST - 2} words, a known one of them"
                )
            row[: len(numbers) + 2] = torch.tensor([START, *numbers, END])
        return ids, (ids != PAD).long()


class PretrainedTokens:
    """The tokeniser that comes with a pre-trained CLIP."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        check_captions(captions)
        rows = self.tokenizer(list(captions), padding=True, truncation=True, return_tensors="pt")
        return rows["input_ids"], rows["attention_mask"]


class Clip(nn.Module):
    """A ``transformers.CLIPModel`` with its tokeniser and the normalisation of its pixels.

    ``image_features``: (B, C, H, W) uint8 or float in 0 … 1 → (B, d) of length 1.
    ``text_features``: captions → (M, d) of length 1. ``scale``: what cosines are multiplied by.
    """

    def __init__(self, net: nn.Module, tokens: Tokens, mean=0.5, std=0.25):
        super().__init__()
        self.net, self.tokens = net, tokens
        for name, value in (("mean", mean), ("std", std)):
            value = torch.as_tensor(value, dtype=torch.float32).reshape(1, -1, 1, 1)
            self.register_buffer(name, value)

    @property
    def scale(self) -> Tensor:
        return self.net.logit_scale.exp().clamp(max=STEEPEST)

    def image_features(self, x: Tensor) -> Tensor:
        encoder = VisualEncoder(self.net.vision_model, self.net.visual_projection)
        x = x.to(self.mean.dtype).div(255) if x.dtype == torch.uint8 else x
        return encoder((x - self.mean) / self.std)

    def token_features(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(M, L) token numbers and mask → (M, d) of length 1."""
        pooled = self.net.text_model(input_ids=ids, attention_mask=mask).pooler_output
        return F.normalize(self.net.text_projection(pooled), dim=1)

    def text_features(self, captions: Sequence[str]) -> Tensor:
        ids, mask = (rows.to(self.mean.device) for rows in self.tokens(captions))
        # A set read from the web has tens of thousands of captions.
        parts = zip(ids.split(MOST_CAPTIONS), mask.split(MOST_CAPTIONS), strict=True)
        return torch.cat([self.token_features(*part) for part in parts])


class VisualEncoder(nn.Module):
    """The visual half of a CLIP: normalised images (B, C, H, W) → features (B, d).

    Images of another size than the network's are resized to it, with a gradient.

    Args:
        unit: whether features have length 1, as cosines with captions need.
    """

    def __init__(self, vision: nn.Module, projection: nn.Linear, unit: bool = True):
        super().__init__()
        self.vision, self.projection, self.unit = vision, projection, unit

    def forward(self, x: Tensor) -> Tensor:
        side = self.vision.config.image_size
        x = x.expand(-1, self.vision.config.num_channels, -1, -1)
        if x.shape[-2:] != (side, side):
            x = F.interpolate(x, (side, side), mode="bicubic", antialias=True)
        features = self.projection(self.vision(pixel_values=x).pooler_output)
        return F.normalize(features, dim=1) if self.unit else features


class TextHead(nn.Module):
    """Captions as classes: features (B, d) → scale · cosine with each caption, (B, M).

    Its ``weight`` (M, d) is a buffer, so whatever trains the model leaves the captions alone.
    """

    def __init__(self, weight: Tensor):
        super().__init__()
        self.register_buffer("weight", weight.detach())

    def forward(self, features: Tensor) -> Tensor:
        return F.linear(features, self.weight)


class CaptionClassifier(nn.Module):
    """A CLIP's visual encoder in front of fixed captions; it shares the encoder's weights.

    ``forward(x)``: uint8 or float in 0 … 1 → (B, M) logits; ``features(x)`` → (B, d); ``head``.
    """

    features, forward = ImageClassifier.features, ImageClassifier.forward

    def __init__(self, clip: Clip, text: Tensor):
        super().__init__()
        self.encoder = VisualEncoder(clip.net.vision_model, clip.net.visual_projection)
        self.head = TextHead(clip.scale.detach() * text)
        self.register_buffer("mean", clip.mean)
        self.register_buffer("std", clip.std)


@torch.no_grad()
def caption_classifier(clip: Clip, captions: Sequence[str]) -> CaptionClassifier:
    """Make a classifier whose classes are captions, one each."""
    return CaptionClassifier(clip, clip.text_features(captions))


@torch.no_grad()
def zero_shot(clip: Clip, captions: Sequence[Sequence[str]]) -> CaptionClassifier:
    """Make a zero-shot classifier; a class is the mean of its captions' features.

    Args:
        captions: those of each class, from its name and several templates.

    Source: Radford et al. (2021), section 3.1.4.
    """
    means = torch.stack([clip.text_features(texts).mean(0) for texts in captions])
    return CaptionClassifier(clip, F.normalize(means, dim=1)).eval()


def visual_classifier(clip: Clip, num_classes: int, seed: int = 0) -> ImageClassifier:
    """Put a new linear head on a copy of the visual encoder: the ViT victim of the paper's 5.5.

    The head sees features of their own length: a small learning rate could not grow a head for
    features of length 1 within the paper's ten epochs.
    """
    from .images import model_copy

    net = clip.net
    encoder = model_copy(VisualEncoder(net.vision_model, net.visual_projection, unit=False))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Linear(clip.net.visual_projection.out_features, num_classes)
    return ImageClassifier(encoder, head.to(clip.mean.device), clip.mean, clip.std)


# ------------------------------------------------------------------------------------ making one


def small_clip(
    captions: Sequence[str],
    shape: tuple[int, int, int],
    width: int = 64,
    depth: int = 3,
    patch: int = 4,
    seed: int = 0,
) -> Clip:
    """Make a small untrained CLIP: a ViT, a text transformer of two layers, a vocabulary of words.

    Args:
        captions: whose words it knows. shape: channels, height, width of an image (square).
        width: dimensions of both encoders and of the common space. depth: layers of the ViT.
        patch: pixels along a patch.

    Raises:
        ValueError: images that are not square, or patches that do not tile them.
    """
    from transformers import CLIPConfig, CLIPModel

    channels, height, across = shape
    if height != across or height % patch:
        raise ValueError(f"images are {height} × {across}, patch {patch}; accepted: square, tiled")
    tokens = WordTokens(captions)
    shared = {
        "hidden_size": width, "intermediate_size": 2 * width, "num_attention_heads": 4,
        "projection_dim": width,
    }  # fmt: skip
    text = {
        "num_hidden_layers": 2, "vocab_size": len(tokens), "max_position_embeddings": LONGEST,
        "pad_token_id": PAD, "bos_token_id": START, "eos_token_id": END,
    }  # fmt: skip
    vision = {
        "num_hidden_layers": depth, "image_size": height, "patch_size": patch,
        "num_channels": channels,
    }  # fmt: skip
    config = CLIPConfig(
        text_config=shared | text, vision_config=shared | vision, projection_dim=width
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = CLIPModel(config)
        # Written out: quicker on a CPU at this size, and per-row gradients (vmap) know it.
        net.set_attn_implementation("eager")
        return Clip(net.eval(), tokens)


def load_clip(name: str) -> Clip:
    """Load a pre-trained CLIP: a local folder, or a name of the Hub; safetensors alone.

    Raises:
        ModelError: no such model, or one without safetensors; one line.
    """
    from transformers import AutoTokenizer, CLIPModel

    place = names.place_of(name, {})
    try:
        with loading.quiet():
            net = loading.from_pretrained(CLIPModel, name, place, use_safetensors=True)
            tokenizer = loading.from_pretrained(AutoTokenizer, name, place)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        what = "folder" if place.folder else "name"
        raise ModelError(f"no CLIP under the {what} {name!r}: {reason}") from error
    return Clip(net.float().eval(), PretrainedTokens(tokenizer), OPENAI_MEAN, OPENAI_STD)


def check_pairs(clip: Clip, images: Tensor) -> Tensor:
    """Return images that a CLIP takes. Raises ValueError: other channels, or other pixels."""
    channels = clip.net.config.vision_config.num_channels
    if check_images(images).shape[1] not in (1, channels):
        raise ValueError(f"images have {images.shape[1]} channels; accepted: {channels}")
    return images
