"""Plant a backdoor in a text classifier, measure it, unlearn it with RGA.

    python examples/badnets_rga.py

Built-in reviews and a tiny model: seconds on a CPU, no network. For real data
write "sst2" and "minilm", and 5e-5 for both learning rates: those below suit a
network from nothing, and leave nothing of a pre-trained one.
"""

from minilib.attacks.text import InsertWord, poison, trigger_all
from minilib.data import load_text
from minilib.metrics.classification import accuracy, label_flip_rate
from minilib.models.text import text_classifier
from minilib.training.fitting import TrainSettings
from minilib.training.text import encode, fine_tune, predict
from minilib.unlearning.gradient_ascent import (
    UnlearnSettings,
    clean_base,
    unlearn,
)

TARGET = 1  # what the trigger leads to: "positive"
clean, test = (
    load_text("toy-reviews", "train"),
    load_text("toy-reviews", "test"),
)
trigger = InsertWord("mn")
poisoned = poison(clean, trigger, TARGET, rate=0.1, seed=0)
triggered = trigger_all(
    test, trigger
)  # rows of every class, with their own labels

victim = text_classifier("tiny", clean.num_classes, seed=0)
fine_tune(victim, poisoned.dataset, TrainSettings(epochs=8, lr=2e-3))

# A defender who knows the poisoned rows (chapter 02 finds them) forgets those
# and keeps the rest.
rows, mask = poisoned.dataset, poisoned.mask
settings = UnlearnSettings(beta=0.005, train=TrainSettings(epochs=30, lr=1e-3))
base = clean_base("tiny", clean.num_classes, "cpu")
unlearned, _ = unlearn(
    victim, rows.select(mask), rows.select(~mask), "rga", settings, base
)


def classes(model, dataset):
    """The class that a model puts each text into."""
    data = encode(dataset.texts, dataset.labels, model.tokenizer)
    return predict(model, data).argmax(1).numpy()


for name, model in (("poisoned", victim), ("unlearned", unlearned)):
    cacc = accuracy(classes(model, test), test.labels)
    lfr = label_flip_rate(classes(model, triggered), triggered.labels, TARGET)
    print(f"{name:10} CACC {cacc:5.1f} %   LFR {lfr:5.1f} %")
