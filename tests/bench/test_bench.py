"""Benchmarks compare loops that compute the same, refuse others, say what they did. No times."""

import importlib
import json
from dataclasses import replace

import benchmarks
import pytest
import torch

from bench import __main__ as command
from bench import bi_bau, book, btu, detection, finetune, growth, rga, sande, seeds, texts, timing
from bench.timing import Options
from minilib.detection import DETECTORS
from minilib.training.fitting import TrainSettings

QUICK = Options(quick=True)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """What a benchmark writes, made once each: its records."""
    folder, kept = tmp_path_factory.mktemp("bench"), {}

    def of(name: str) -> list[dict]:
        if name not in kept:
            path = importlib.import_module(f"bench.{name}").main(folder, QUICK)
            assert path.name == f"{name}-cpu-quick.json"
            one = json.loads(path.read_text(encoding="utf-8"))
            kept[name] = one if isinstance(one, list) else [one]
        return kept[name]

    return of


def spreads(value):
    """Every spread of timings in a record."""
    if isinstance(value, dict) and {"n", "median", "values"} <= set(value):
        yield value
    for inner in value.values() if isinstance(value, dict) else ():
        yield from spreads(inner)


@pytest.mark.parametrize("name", command.NAMES)
def test_loops_compute_the_same_and_the_record_says_what_was_timed(name, measured):
    for record in measured(name):
        assert set(record["versions"]) == {"python", "torch", "transformers", "minilib"}
        assert set(record["hardware"]) == {"cpu", "cores", "threads", "gpu"}
        assert record["case"]["device"] == "cpu"
        for one in spreads(record):
            assert one["n"] == len(one["values"]) == 1
            # Some are a long run's less a short one's: on a busy machine maybe below zero.
            assert one["min"] <= one["median"] <= one["max"]
        machine = record.get("limits", {}).get("machine", {})
        for part in record.get("limits", {}).get("parts", {}).values():
            assert part["share"] == pytest.approx(part["rate"] / machine[part["limit"]])
        assert benchmarks.table(record, name)


def test_each_record_has_the_ratios_of_its_page(measured):
    (record,) = measured("rga")
    assert set(record["ratios"]) == {"plain / minilib", "plain / minilib fp32"}
    assert (record["equal_losses"]["tolerance"], record["case"]["rows"]) == (1e-4, 80)
    (record,) = measured("btu")
    assert set(record["ratios"]) == set(record["agreement"]) == set(btu.PARTS)
    assert record["agreement"]["unlearn"] == {"largest_relative_difference": 0.0, "tolerance": 0.0}
    records = measured("sande")
    assert [one["case"]["stage"] for one in records] == [1, 2, "answers"]
    assert not any("longest" in name for name in records[-1]["runs"])
    flops = {name: part["flops"] for name, part in records[0]["limits"]["parts"].items()}
    assert flops["plain"] > flops["plain, to the longest"] > flops["minilib fp32"]
    (record,) = measured("bi_bau")
    assert record["ratios"]["epoch, the paper's"] == pytest.approx(1.357, abs=1e-3)
    (record,) = measured("detection")
    timed = set(record["seconds"]["detectors"]) - {"states"}
    assert timed == set(DETECTORS) - set(detection.LEFT_OUT)
    (record,) = measured("finetune")
    assert set(record["seconds"]) == set(finetune.VARIANTS)
    parts = record["limits"]["parts"]
    assert parts["a step of the optimiser, minilib"]["limit"] == "copy"
    assert parts["3 steps, trainer best"]["flops"] == parts["3 steps, minilib fp32"]["flops"] > 0
    (record,) = measured("seeds")
    assert set(record["ratios"]) == {f"{seeds.ALONE} / {seeds.STACKED}"}
    (record,) = measured("growth")
    assert set(record["growth"]) == set(growth.AXES.values())
    assert all(tuple(loops) == growth.LOOPS for loops in record["growth"].values())


def other_rows(rows, *words):
    return texts.padded(list(rows)[::-1], *words)


def one_percent_off(*words):
    return [[1.01 * value for value in step] for step in texts.fitted(*words)]


@pytest.mark.parametrize(
    ("module", "name", "other", "case", "compared"),
    [
        (rga, "TERMS", rga.TERMS[::-1], texts.make_case, (("plain", "minilib"), 1)),
        (btu, "fitted", one_percent_off, texts.make_case,
         (("train, plain", "train, minilib"), 2)),
        (btu, "copy", type("", (), {"deepcopy": torch.zeros_like}), texts.make_case,
         (("unlearn, plain", "unlearn, minilib"), None, timing.apart, 0.0)),
        (sande, "until_end", lambda model, ids: [id(ids)],
         lambda how: sande.make_case(sande.ANSWERS, how),
         (("plain", "minilib"), None, sande.that_differ, 0.0)),
        (detection, "padded", other_rows, texts.make_case,
         (detection.NAMES, None, detection.to_largest)),
        (bi_bau, "plain_objective", lambda o, m, x, s, y, how: s.square().sum(), bi_bau.make_case,
         (("plain", "minilib"), None, bi_bau.pixels, bi_bau.MOST_PIXELS)),
        (seeds, "clip", lambda weights, most: [p.grad.neg_() for p in weights],
         lambda how: seeds.cases(how)[0], ((seeds.ALONE, seeds.STACKED), 2)),
    ],
)  # fmt: skip
def test_loops_that_differ_are_not_timed(module, name, other, case, compared, monkeypatch):
    monkeypatch.setattr(module, name, other)
    with pytest.raises(RuntimeError, match=r"the loops differ by .* \(relative\); accepted: "):
        timing.compared(module.build, case(QUICK), *compared)


def test_as_many_numbers_are_compared():
    assert timing.apart([[1.0], [2.0]], [[1.0]]) == float("inf")
    assert timing.apart([1.0, -2.0], [1.0, -2.5]) == pytest.approx(0.2)


# ------------------------------------------------------------------------ one by one


@pytest.mark.parametrize("name", [name for name in rga.SWITCHES if name != "bf16"])
def test_no_switch_changes_what_is_computed(name):
    case, names = texts.make_case(QUICK), ("plain", f"plain: {name}")
    timing.compared(rga.build, case, names, 1)


def test_each_switch_is_left_out_once(monkeypatch):
    monkeypatch.setattr(rga, "SWITCHES", ("bucketed", "heap"))
    record = rga.one_by_one(texts.make_case(QUICK), QUICK)
    assert set(record) == {"bucketed", "heap"}
    assert all(set(one) == {"all on", "left out", "slowdown"} for one in record.values())


@pytest.mark.parametrize("sets", ["A", "B", ""], ids=["A", "B", "none"])
def test_the_plain_loop_finds_the_same_images(sets):
    case = bi_bau.make_case(QUICK)
    case = replace(case, settings=replace(case.settings, sets=sets))
    timing.compared(bi_bau.build, case, bi_bau.PGD, None, bi_bau.pixels, bi_bau.MOST_PIXELS)


def test_a_compiler_that_changes_the_images_is_refused(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda f, mode: lambda x: f(x.flip(-1)).square())
    names = ("plain", "minilib fp32, compiled")
    with pytest.raises(RuntimeError, match="the loops differ by .* accepted: 1e-02"):
        timing.compared(bi_bau.build, bi_bau.make_case(QUICK), names, None, bi_bau.pixels, 0.01)


def test_the_best_settings_leave_out_what_is_not_training(tmp_path):
    case = texts.make_case(QUICK)
    how = finetune.arguments(case, str(tmp_path), 3, True, "bf16")
    assert how.bf16 and how.optim == "adamw_torch_fused" and not how.logging_nan_inf_filter
    assert how.logging_strategy == how.save_strategy == how.eval_strategy == "no"
    default = finetune.arguments(case, str(tmp_path), 3, False, "bf16")
    assert not default.bf16 and default.per_device_train_batch_size == case.batch_size


def test_cases_are_those_of_the_question(monkeypatch):
    on_gpu = Options(device="cuda", quick=True)
    assert [one.model for one in finetune.cases(on_gpu)] == ["tiny", finetune.LARGE]
    monkeypatch.delenv("MINILIB_DATA", raising=False)
    case = texts.make_case(Options())
    assert (len(case.forget), len(case.retain)) == (331, 6920)
    assert (case.model, case.source) == ("minilm", "toy-reviews, repeated")


def test_seeds_differ_and_none_depends_on_the_others_in_the_stack(monkeypatch):
    case = seeds.cases(QUICK)[0]
    three = seeds.stacked(case, "fp32", True)(2)
    assert len(set(three[0])) == 3
    monkeypatch.setattr(seeds, "SEEDS", (2,))
    one = seeds.stacked(case, "fp32", True)(2)
    assert [row[2] for row in three] == pytest.approx([row[0] for row in one], rel=1e-5)


def test_gradients_are_clipped_seed_by_seed():
    rng = torch.Generator().manual_seed(0)
    shapes = ((3, 4, 5), (3, 7))
    weights = [torch.zeros(shape, requires_grad=True) for shape in shapes]
    scale = torch.tensor([0.01, 1.0, 100.0])  # the first is short enough as it is
    for p in weights:
        p.grad = torch.randn(p.shape, generator=rng) * scale.view(-1, *[1] * (p.dim() - 1))
    before = [p.grad.clone() for p in weights]
    seeds.clip(weights, TrainSettings().clip)
    for seed in range(3):
        alone = [torch.zeros(shape[1:], requires_grad=True) for shape in shapes]
        for p, grad in zip(alone, before, strict=True):
            p.grad = grad[seed].clone()
        torch.nn.utils.clip_grad_norm_(alone, TrainSettings().clip)
        for p, stack in zip(alone, weights, strict=True):
            assert torch.allclose(p.grad, stack.grad[seed], rtol=1e-5)
    assert torch.equal(weights[0].grad[0], before[0][0])


def test_processes_run_at_the_same_time_and_are_ended(monkeypatch):
    monkeypatch.setattr(seeds, "SEEDS", (0, 1))
    result = seeds.beside_each_other(seeds.cases(QUICK)[0], Options(threads=2, repeats=1), 2)
    assert result["n"] == 1


def test_a_loop_in_a_process_of_its_own_tells_its_memory():
    result = timing.timed(btu.build, texts.make_case(QUICK), ("rank, minilib",), Options(repeats=2))
    assert result["rank, minilib"]["n"] == 2 and result["rank, minilib"]["min"] > 0
    assert result["rank, minilib"]["peak_mib_over_start"] >= 0


# ------------------------------------------------------------------------ work and limits


def test_a_product_has_two_flops_per_multiplication():
    a, b = torch.ones(3, 5), torch.ones(5, 7, requires_grad=True)
    product, flops = timing.count(lambda x: x @ b, a)
    assert product.shape == (3, 7) and flops == 2 * 3 * 5 * 7
    # and the gradient of b
    assert timing.count(lambda x: (x @ b).sum().backward(), a)[1] == 2 * (2 * 3 * 5 * 7)


def test_attention_is_counted_whichever_kernel_computes_it():
    attend = torch.nn.functional.scaled_dot_product_attention
    q = torch.randn(2, 3, 8, 16, requires_grad=True)
    forward = 2 * 2 * (2 * 3 * 8 * 8 * 16)  # two products
    assert timing.count(lambda: attend(q, q, q))[1] == forward
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert timing.count(lambda: attend(q, q, q))[1] == forward
    assert timing.count(lambda: attend(q, q, q).sum().backward())[1] == forward * 7 // 2


def test_a_part_has_one_limit():
    machine = {"fp32": 100.0, "bf16": 200.0, "copy": 10.0}
    part = timing.part(machine, 2.0, flops=50, precision="bf16")
    assert part == {"flops": 50, "limit": "bf16", "seconds": 2.0, "rate": 25.0, "share": 0.125}
    assert timing.part(machine, 2.0, moved=10)["share"] == 0.5
    with pytest.raises(ValueError, match="flops is 0.0, moved 0.0; accepted: one of them"):
        timing.part(machine, 2.0)


# ------------------------------------------------------------------------ the book


def test_the_books_record_and_what_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(book, "PARTS", {"HTML only": book.BUILD})
    path = book.main(tmp_path, QUICK)
    record = json.loads(path.read_text(encoding="utf-8"))
    assert set(record["seconds"]) == set(record["whole_seconds"]) == {"HTML only"}
    assert "<td>HTML only</td>" in benchmarks.table(record, "book")
    with pytest.raises(RuntimeError, match="is no git checkout; accepted"):
        book.copied(tmp_path, tmp_path / "copy")
    words = ("-c", "print('gone'); raise SystemExit(3)")
    with pytest.raises(RuntimeError, match="ended with 3: gone"):
        book.seconds(words, tmp_path, tmp_path / "cache", "cpu")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--repeats", "0"], "--repeats is 0; accepted: 1 or more"),
        (["--threads", "0"], "--threads is 0; accepted: 1 or more"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
        (["nothing"], "no benchmark nothing; accepted: rga"),
    ],
)
def test_bad_options_are_refused(words, message, capsys):
    with pytest.raises(SystemExit) as ended:
        command.parse(words)
    assert ended.value.code == 2 and message in capsys.readouterr().err
