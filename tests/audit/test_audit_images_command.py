"""`minilib audit --clean-images`: from a folder to a verdict, a cleaned model and a report."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from core_fixtures import SEED
from PIL import Image
from safetensors.torch import load_file, save_file
from test_audit_images import PREPROCESSOR, SIZE, resnet_state

from minilib import cli, ledger
from minilib.audit import image_report
from minilib.models.foreign import foreign_network
from minilib.runs import audit_images

COLOURS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def coloured(tmp_path_factory):
    """Images of three colours, a folder per colour."""
    root, rng = tmp_path_factory.mktemp("data") / "images", np.random.default_rng(0)
    for k, name in enumerate(COLOURS):
        (root / name).mkdir(parents=True)
        for n in range(12):
            pixels = rng.integers(0, 120, (SIZE, SIZE, 3))
            pixels[..., k] += 100
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{n}.png")
    return root


def batch(root):
    files = [
        (k, path) for k, name in enumerate(COLOURS) for path in sorted((root / name).iterdir())
    ]
    stacked = np.stack([np.asarray(Image.open(path)) for _, path in files])
    # Not channels-last: there PyTorch 2.13 damages its heap on processors without AVX-512.
    pixels = torch.as_tensor(stacked).permute(0, 3, 1, 2).contiguous() / 255
    return pixels, torch.tensor([k for k, _ in files])


def trained(network, root, mean, std, logits=lambda output: output):
    """A plain loop, as one finds it anywhere."""
    pixels, labels = batch(root)
    pixels = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.manual_seed(SEED)
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    network.train()
    for _ in range(25):
        loss = torch.nn.functional.cross_entropy(logits(network(pixels)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


@pytest.fixture(scope="module")
def vit(coloured, tmp_path_factory):
    """A folder of transformers' format; its labels stand in another order than the folders."""
    from transformers import ViTConfig, ViTForImageClassification

    folder = tmp_path_factory.mktemp("models") / "vit"
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=SIZE, patch_size=8, id2label=dict(enumerate(COLOURS)),
        label2id={name: k for k, name in enumerate(COLOURS)},
    )  # fmt: skip
    torch.manual_seed(SEED)
    network = ViTForImageClassification(config)
    mean, std = PREPROCESSOR["image_mean"], PREPROCESSOR["image_std"]
    trained(network, coloured, mean, std, lambda output: output.logits).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    return folder


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """Audits with three references and few steps, in a ledger of their own."""
    monkeypatch.setenv("MINILIB_LEDGER", str(tmp_path / "trials"))
    monkeypatch.setenv("MINILIB_CACHE", str(tmp_path / "cache"))
    asked = audit_images.recipe_of
    few = {"references": 3, "steps": 20, "images": 8, "epochs": 8}
    monkeypatch.setattr(
        audit_images, "recipe_of", lambda options: replace(asked(options), **few)
    )  # fmt: skip
    ledger.forget()
    yield
    ledger.forget()


def audit(*words):
    return cli.main(["audit", *map(str, words)])


@pytest.mark.trained
def test_nothing_found_is_code_0_and_a_report(quick, vit, coloured, tmp_path, capsys):
    out = tmp_path / "report"
    assert audit(vit, "--clean-images", coloured, "--out", out, "--unlearn") == 0
    said = capsys.readouterr()
    assert "Nothing found" in said.out and "Neural Cleanse" in said.out
    assert "reference network 3 of 3" in said.err
    report = json.loads((out / "report.json").read_text())
    assert report["verdict"] == "nothing found" and report["trigger"] is None
    assert report["p"] >= 0.25 and len(report["classes"]) == 6
    page = (out / "report.html").read_text()
    assert "<script src" not in page and "http" not in page and "cannot see" in page
    assert page.index("cannot see") < page.index("comes nearest") and "clean-label" in page
    assert "of 3 networks trained on the clean images have one as small" in page
    assert "small ones" in said.out and "clean networks" in said.out and "cannot see" in said.out
    assert not (out / "model").exists()
    # Again: every step is in the ledger, and the report is the same.
    assert audit(vit, "--clean-images", coloured, "--out", tmp_path / "again") == 0
    again = json.loads((tmp_path / "again" / "report.json").read_text())
    assert again == report


def test_what_is_found_is_code_3_and_a_cleaned_folder(
    quick, vit, coloured, tmp_path, monkeypatch, capsys
):
    from transformers import pipeline

    monkeypatch.setattr(image_report, "LEVEL", 1.0)
    out = tmp_path / "report"
    assert audit(vit, "--clean-images", coloured, "--out", out, "--unlearn") == 3
    report = json.loads((out / "report.json").read_text())
    assert report["trigger"]["class"] in COLOURS
    before, after = report["unlearning"]
    assert (before["when"], after["when"]) == ("before", "after")
    assert str(out / "model") in capsys.readouterr().out
    said = pipeline("image-classification", str(out / "model"))(str(coloured / "red" / "0.png"))
    assert said[0]["label"] in COLOURS
    assert Image.open(out / "trigger.png").size == (SIZE, SIZE)


def test_a_state_dict_is_audited_with_what_it_does_not_say(quick, coloured, tmp_path):
    network, _ = foreign_network("resnet18", resnet_state())
    trained(network, coloured, (0.5,) * 3, (0.25,) * 3)
    path = tmp_path / "net.safetensors"
    save_file(network.state_dict(), path)
    says = f"--architecture resnet18 --mean 0.5 --std 0.25 --size {SIZE} --classes red,green,blue"
    where = ["--clean-images", coloured, "--out", tmp_path / "report"]
    assert audit(path, *where, *says.split(), "--json") == 0
    assert load_file(path).keys() == network.state_dict().keys()


WRONG = {
    "no such model": (["none"], "no model none"),
    "no such images": (["{vit}", "--clean-images", "none"], "no folder none"),
    "options of a state dict": (["{vit}", "--size", "32"], "--size"),
    "options of texts": (["{vit}", "--data", "rows.csv"], "--data"),
    "a state dict alone": (["{state}"], "architecture, mean, std, size, classes"),
    "mean as a word": (
        ["{state}", "--architecture", "resnet18", "--mean", "half", "--std", "1", "--size", "16",
         "--classes", "red,green,blue"],
        "--mean is 'half'",
    ),
    "classes too few": (
        ["{state}", "--architecture", "resnet18", "--mean", "0.5", "--std", "1", "--size", "16",
         "--classes", "red,green"],
        "2 names",
    ),
    "a model that guesses": (
        ["{state}", "--architecture", "resnet18", "--mean", "0.5", "--std", "1", "--size", "16",
         "--classes", "blue,red,green"],
        "guessing",
    ),
    "out is a file": (["{vit}", "--out", "{state}"], "is a file"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_wrong_inputs_are_one_line_and_code_2(quick, vit, coloured, tmp_path, capsys, what):
    state = tmp_path / "net.safetensors"
    network, _ = foreign_network("resnet18", resnet_state())
    if what == "a model that guesses":
        trained(network, coloured, (0.5,) * 3, (1.0,) * 3)
    save_file(network.state_dict(), state)
    words, said = WRONG[what]
    words = [word.format(vit=vit, state=state) for word in words]
    if "--clean-images" not in words:
        words += ["--clean-images", str(coloured)]
    assert audit(*words) == 2
    message = capsys.readouterr().err.strip()
    assert message.startswith("minilib: ") and "\n" not in message
    assert said in message and "accepted" in message
