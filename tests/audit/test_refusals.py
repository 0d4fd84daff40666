"""What cannot be audited is refused in one line that says what would be accepted, with code 2."""

import gzip
import re
import shutil

import audit_fixtures as made
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from minilib import cli


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder and a table that are as they should be."""
    place = tmp_path_factory.mktemp("whole")
    made.saved(place / "model")
    made.table(place / "rows.csv", *made.rows(40, 0))
    return place


@pytest.fixture
def mine(whole, tmp_path, monkeypatch):
    """A copy of them to spoil, in the working folder."""
    shutil.copytree(whole, tmp_path / "mine")
    monkeypatch.chdir(tmp_path / "mine")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "mine"


def refusal(capsys, *words) -> str:
    """The line with which `minilib audit` refuses."""
    code = cli.main(["audit", *words])
    output = capsys.readouterr()
    assert code == 2, output.err
    assert output.err.count("\n") == 1 and output.err.startswith("minilib: "), output.err
    assert re.search("accepted|cannot be loaded|safe_serialization", output.err), output.err
    return output.err


COLUMNS = ("--text", "review", "--label", "sentiment")


# ---------------------------------------------------------------- models


def without(*names):
    def spoil(folder):
        for name in names:
            (folder / name).unlink()

    return spoil


def weights(change):
    """Weights with other entries."""

    def spoil(folder):
        file = folder / "model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, metadata={"format": "pt"})

    return spoil


def pickled(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def headless(tensors):
    del tensors["classifier.weight"], tensors["classifier.bias"]


def wider(tensors):
    tensors["classifier.weight"] = torch.zeros(3, 32)
    tensors["classifier.bias"] = torch.zeros(3)


def cut(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def config(**changes):
    return lambda folder: made.edited(folder, "config.json", **changes)


def smaller(folder):
    """A tokenizer with more tokens than the embeddings have rows."""
    made.edited(folder, "config.json", vocab_size=100)
    weights(
        lambda tensors: tensors.update(
            {"bert.embeddings.word_embeddings.weight":
             tensors["bert.embeddings.word_embeddings.weight"][:100].clone()}
        )
    )(folder)  # fmt: skip


def words(count: int, **settings):
    """A tokenizer of the first words alone; without an unknown one unless it is named."""

    def spoil(folder):
        listed = [*made.SPECIAL, *made.GOOD, *made.BAD, *made.FILLING][:count]
        model = WordLevel({word: number for number, word in enumerate(listed)}, **settings)
        PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(model), pad_token="[PAD]", model_max_length=64
        ).save_pretrained(folder)

    return spoil


def another(kind, **sizes):
    """A model of another architecture in the folder."""

    def spoil(folder):
        config = getattr(transformers, f"{kind}Config")(
            vocab_size=221, d_model=16, pad_token_id=0, eos_token_id=3, decoder_start_token_id=2,
            id2label={0: "negative", 1: "positive"}, **sizes,
        )  # fmt: skip
        made.saved(folder, getattr(transformers, f"{kind}ForSequenceClassification")(config))

    return spoil


SMALL = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
         "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}  # fmt: skip
NO_NUMBER = float("nan")
MODELS = {
    "quantized weights": (
        config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        "cannot be loaded",
    ),
    "labels in a list": (config(id2label=["negative", "positive"]), "cannot be loaded"),
    "labels with a hole": (
        config(id2label={"0": "negative", "2": "positive"}), "for each of the classes 0, 1, …",
    ),
    "weights that are no numbers": (
        weights(lambda tensors: tensors["classifier.bias"].mul_(NO_NUMBER)),
        "classifier.bias holds what is no number",
    ),
    "nine positions": (
        lambda folder: made.saved(folder, made.network(positions=9)), "16 or more in a text",
    ),
    "a vocabulary of twelve": (words(12, unk_token="[UNK]"), "accepted: 48 or more"),
    "a tokenizer that knows no unknown word": (words(220), "fails on the text 'a'"),
    "BART": (another("Bart", **SMALL), "of the type bart, does not take embeddings"),
    "T5": (
        another("T5", d_ff=16, d_kv=8, num_layers=1, num_heads=2),
        "of the type t5, does not take embeddings",
    ),
    "no weights": (without("model.safetensors"), "no weights in safetensors"),
    "no configuration": (without("config.json"), "no config"),
    "no tokenizer": (without("tokenizer.json"), "no tokenizer"),
    "pickled weights": (pickled, "safe_serialization"),
    "no head": (weights(headless), "would be random"),
    "another head": (weights(wider), "would be random"),
    "a layer missing": (
        weights(lambda tensors: tensors.pop("bert.embeddings.LayerNorm.weight")), "would be random",
    ),
    "cut weights": (cut, "cannot be loaded"),
    "configuration is no JSON": (
        lambda folder: (folder / "config.json").write_text("{"), "cannot be loaded",
    ),
    "unknown architecture": (config(model_type="no-such-model"), "cannot be loaded"),
    "one class": (config(id2label={"0": "only"}, label2id={"only": 0}), "would be random"),
    "two classes of one name": (config(id2label={"0": "a", "1": "a"}), "of its own name"),
    "several classes a text": (config(problem_type="multi_label_classification"), "one class"),
    "regression": (config(problem_type="regression"), "one class"),
    "a tokenizer of another model": (smaller, "was trained with"),
    "a model and an adapter": (
        lambda folder: (folder / "adapter_config.json").write_text("{}"), "one of the two",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", MODELS)
def test_a_folder_that_is_no_whole_classifier_is_refused(what, mine, capsys):
    spoil, said = MODELS[what]
    spoil(mine / "model")
    assert said in refusal(capsys, "model", "--clean", "rows.csv", *COLUMNS)


@pytest.mark.parametrize(
    "name, said",
    [
        ("./nothing", "no such folder"), ("rows.csv", "is a file"), ("/no/where/at/all", "folder"),
        ("", "accepted"), (" model", "accepted"), ("a\nb", "accepted"),
        ("nobody/has-this-model", "cannot be loaded"),
    ],
)  # fmt: skip
def test_a_name_that_stands_for_no_model_is_refused(name, said, mine, capsys):
    assert said in refusal(capsys, name, "--clean", "rows.csv", *COLUMNS)


# ---------------------------------------------------------------- tables


HEAD = "review,sentiment\n"
ROWS = "".join(f"text {n},{('negative', 'positive')[n % 2]}\n" for n in range(30))

TABLES = {
    "no header": ("rows.csv", ROWS, "no column 'review'"),
    "empty": ("rows.csv", "", "is empty"),
    "header alone": ("rows.csv", HEAD, "has 0 rows"),
    "few rows": ("rows.csv", HEAD + "text,positive\ntext,negative\n", "20 or more"),
    "one class": ("rows.csv", HEAD + ROWS.replace("negative", "positive"), "one class only"),
    "a class of its own": ("rows.csv", HEAD + ROWS + "a,neutral\n", "line 32: sentiment is 'neut"),
    "labels by number": (
        "rows.csv", HEAD + ROWS.replace("negative", "0").replace("positive", "1"), "line 2: ",
    ),
    "an empty label": ("rows.csv", HEAD + ROWS + "text,\n", "line 32: sentiment is ''"),
    "an empty text": ("rows.csv", HEAD + ROWS + " ,positive\n", "line 32: review is ' '"),
    "a cell too many": ("rows.csv", HEAD + ROWS + "a,positive,b\n", "line 32: 3 cells"),
    "a cell too few": ("rows.csv", HEAD + ROWS + "a\n", "line 32: 1 cells"),
    "an open quote": ("rows.csv", HEAD + ROWS + '"a,positive\n', "line"),
    "a column twice": ("rows.csv", "review,review,sentiment\n", "twice"),
    "a NUL": ("rows.csv", HEAD + ROWS + "a\0b,positive\n", "line 32"),
    "Latin-1": ("rows.csv", (HEAD + ROWS).encode() + b"caf\xe9,positive\n", "line 32: byte"),
    "UTF-16": ("rows.csv", (HEAD + ROWS).encode("utf-16"), "UTF-16"),
    "no table": ("rows.docx", HEAD + ROWS, "no table"),
    "no ending": ("rows", HEAD + ROWS, "no table"),
    "gzip cut off": ("rows.csv.gz", gzip.compress((HEAD + ROWS).encode())[:-20], "cannot be read"),
    "no gzip": ("rows.csv.gz", HEAD + ROWS, "cannot be read"),
    "Parquet that is none": ("rows.parquet", HEAD + ROWS, "cannot be read"),
    "JSON that is no object": ("rows.jsonl", "[1, 2]\n", "line 1"),
    "JSON cut off": ("rows.jsonl", '{"review": "a", "sent\n', "line 1"),
    "JSON without the column": ("rows.jsonl", '{"review": "a"}\n', "no 'sentiment'"),
    "JSON with a number for a text": (
        "rows.jsonl", '{"review": 3, "sentiment": "positive"}\n', "review is 3",
    ),
    "JSON with no label": (
        "rows.jsonl", '{"review": "a", "sentiment": null}\n', "missing (NaN)",
    ),
    "JSON with half a character": (
        "rows.jsonl", '{"review": "\\ud800", "sentiment": "positive"}\n', "line 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", TABLES)
def test_a_table_that_is_not_as_it_should_be_is_refused_by_its_line(what, mine, capsys):
    name, content, said = TABLES[what]
    (mine / name).write_bytes(content.encode() if isinstance(content, str) else content)
    line = refusal(capsys, "model", "--clean", name, *COLUMNS)
    assert said in line and name in line


@pytest.mark.parametrize(
    "words, said",
    [
        ((), "--data FILE or --clean FILE"),
        (("--chat", "prompts.jsonl"), "cannot be read"),
        (("--clean", "nothing.csv", *COLUMNS), "cannot be read"),
        (("--clean", "model", *COLUMNS), "cannot be read"),
        (("--clean", "rows.csv", "--text", "body", "--label", "sentiment"), "no column 'body'"),
        (("--clean", "rows.csv", "--text", "review", "--label", "review"), "two columns"),
        (("--clean", "rows.csv", *COLUMNS, "--labels", "negative"), "pairs such as"),
        (("--clean", "rows.csv", *COLUMNS, "--labels", "a=positive,a=negative"), "each label once"),
        (("--clean", "rows.csv", *COLUMNS, "--labels", "a=good,b=negative"), "labels says a=good"),
        (("--clean", "rows.csv", *COLUMNS, "--out", "rows.csv"), "is a file"),
        (("--clean", "rows.csv", *COLUMNS, "--seed", "-1"), "seed is -1"),
        (("--clean", "rows.csv", *COLUMNS, "--seed", str(2**70)), "seed is 1180591620717411303424"),
        (("--clean", "rows.csv", *COLUMNS, "--out", "rows.csv/sub"), "cannot be written"),
        (("--clean", "rows.csv", *COLUMNS, "--out", "/proc/nothing/x"), "cannot be written"),
        (("--clean", "rows.csv", *COLUMNS, "--out", "s3://bucket/x"), "on this machine"),
        (("--clean", "rows.csv", *COLUMNS, "--out", "model"), "which is audited"),
        (("--clean", "rows.csv", *COLUMNS, "--out", "."), "would write into model"),
        (("--chat", "prompts.jsonl", "--seed", "-1"), "seed is -1"),
        (("--clean-images", "model", "--seed", "-1"), "seed is -1"),
        (("--clean-images", "model", "--out", "/proc/nothing/x"), "cannot be written"),
    ],
)  # fmt: skip
def test_a_request_that_cannot_be_met_is_refused(words, said, mine, capsys):
    assert said in refusal(capsys, "model", *words)
