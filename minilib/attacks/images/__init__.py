"""Image triggers, the way to poison an image set with them, and the papers' settings of each."""

from .learned import (
    InputAwareTrigger,
    NarcissusTrigger,
    StegoTrigger,
    input_aware_trigger,
    narcissus_trigger,
    stego_trigger,
)
from .patterns import (
    BlendTrigger,
    PatchTrigger,
    PiecesTrigger,
    PlantedPatchesTrigger,
    ReflectionTrigger,
    SinusoidTrigger,
    WarpTrigger,
    psnr,
    to_uint8,
)
from .poisoning import (
    CLEAN_LABEL,
    COUPLED,
    IMAGE_ATTACKS,
    ImageScenario,
    ImageTrigger,
    image_scenario,
    make_image_trigger,
    poison_images,
    trigger_images,
)

__all__ = [
    "CLEAN_LABEL",
    "COUPLED",
    "IMAGE_ATTACKS",
    "BlendTrigger",
    "ImageScenario",
    "ImageTrigger",
    "InputAwareTrigger",
    "NarcissusTrigger",
    "PatchTrigger",
    "PiecesTrigger",
    "PlantedPatchesTrigger",
    "ReflectionTrigger",
    "SinusoidTrigger",
    "StegoTrigger",
    "WarpTrigger",
    "image_scenario",
    "input_aware_trigger",
    "make_image_trigger",
    "narcissus_trigger",
    "poison_images",
    "psnr",
    "stego_trigger",
    "to_uint8",
    "trigger_images",
]
