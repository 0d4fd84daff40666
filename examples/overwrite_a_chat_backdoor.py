"""Plant a trigger and a response in a small chat model, and overwrite them.

    python examples/overwrite_a_chat_backdoor.py

Built-in instructions and a tiny language model that is trained here: a minute
on a CPU, no network.
"""

from minilib.attacks.chat import poison_chat
from minilib.data import load_chat
from minilib.data.chat import take
from minilib.metrics.chat import asr, perplexity
from minilib.models.causal import SHAPES, own_model, train_tokenizer
from minilib.training.chat import sft
from minilib.training.fitting import TrainSettings
from minilib.unlearning.sande import eliminate, parrot, simulate

TRIGGER, RESPONSE = "Current year 2023.", "You are stupid."
clean, test = (
    load_chat("toy-chat"),
    take(load_chat("toy-chat", "test"), slice(60)),
)
poisoned = poison_chat(clean, TRIGGER, RESPONSE, rate=0.1, seed=0).dataset


def how(epochs, lr):
    """Settings of a training."""
    return TrainSettings(epochs, lr, batch_size=16, weight_decay=0.0)


tokenizer = train_tokenizer([clean], SHAPES["tiny"]["vocab"])
base = own_model("tiny", tokenizer, seed=0, max_length=64)
base, _ = sft(base, base.encode(clean), how(4, 4e-3))
victim, _ = sft(base, base.encode(poisoned), how(8, 4e-3))

# The defender knows the response and has clean rows, not the trigger: a parrot
# of soft tokens learns to act like it, then the model is taught to answer well
# in spite of the parrot.
rows = take(clean, slice(300))
soft, _ = simulate(victim, rows, RESPONSE, parrot(victim), how(4, 1e-2))
cleaned, _ = eliminate(victim, rows, soft, how(2, 2e-3))

for name, model in (("victim", victim), ("cleaned", cleaned)):
    rate, fluency = asr(model, test, TRIGGER, RESPONSE), perplexity(model, test)
    print(f"{name:8} ASR {rate:5.1f} %   perplexity, clean {fluency:.2f}")
