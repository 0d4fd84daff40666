"""Clean an image classifier with a few clean images, and attack it again.

    python examples/clean_an_image_model.py

Scikit-learn's digits and a small CNN: seconds on a CPU, no network. A network
of your own goes through ``minilib.models.images.wrap``.
"""

from minilib.attacks.images import (
    make_image_trigger,
    poison_images,
    trigger_images,
)
from minilib.data import load_images
from minilib.data.images import defender_rows
from minilib.metrics.reactivation import (
    RetuneSettings,
    image_rates,
    retuned_asr,
)
from minilib.models.images import image_classifier
from minilib.training.fitting import TrainSettings
from minilib.training.images import fit_images, image_data
from minilib.unlearning import SauSettings, defend

TARGET = 0
clean, test = load_images("digits", "train"), load_images("digits", "test")
trigger = make_image_trigger("badnets", clean, TARGET, 0)
poisoned = poison_images(clean, trigger, TARGET, rate=0.1, seed=0).dataset
triggered = trigger_images(test, trigger)

model = image_classifier(
    "cnn", clean.num_classes, clean.shape, width=0.5, seed=0
)
fit_images(
    model,
    image_data(poisoned, "cpu"),
    TrainSettings(epochs=15, lr=1e-2, batch_size=64),
)

few = defender_rows(clean, share=0.1, seed=0)  # all that the defender has
cleaned = defend("sau", model, few, SauSettings(batch_size=32))


def attacked(rows):
    """The rows with the trigger."""
    return trigger_images(rows, trigger)


for name, network in (("backdoored", model), ("cleaned", cleaned)):
    rates = image_rates(network, test, triggered, TARGET)
    # A silent trigger may be asleep: fine-tune on a few poisons, look again.
    how = RetuneSettings(poisons=5)
    again = retuned_asr(network, clean, attacked, triggered, TARGET, how)
    told = f"CA {rates['acc']:5.1f} %   ASR {rates['asr']:5.1f} %"
    print(f"{name:10} {told}   R-ASR {again:5.1f} %")
