"""Detectors: their kernels against plain NumPy, their verdicts on toy data, their refusals."""

import math
from dataclasses import replace
from functools import partial
from statistics import median

import numpy as np
import pytest
import torch
from conftest import nightly
from core_fixtures import SEED, SEEDS
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from minilib import detection
from minilib.detection import (
    DefenderData,
    common,
    degrade,
    feature_space,
    perturbation,
    quality,
    ranking,
)
from minilib.detection.fluency import CausalFluency, NGram
from minilib.models.text import text_classifier
from minilib.settings import TextDetectionSettings
from minilib.training.fitting import TrainSettings
from minilib.training.text import fine_tune
from minilib.victims import text as text_victims

quick = settings(max_examples=30)
seeds = st.integers(0, 2**32 - 1)
# Few epochs: a tiny model that has learnt its training set by heart draws each class into one
# point, triggered rows and all, and there is nothing left to cluster (the chapter shows it).
TRAINING = TrainSettings(epochs=3, lr=1e-3, precision="fp32", seed=SEED)


@pytest.fixture(scope="module")
def case():
    """BadNets on the built-in reviews, a fifth of the negatives poisoned."""
    return text_victims.scenario("toy-reviews", "badnets", 0.2, seed=SEED)


@pytest.fixture(scope="module")
def victim(case):
    return tuned(case.poisoned.dataset, "tiny", TRAINING)


def tuned(dataset, model: str, training: TrainSettings):
    """A model fine-tuned on some rows, in eval mode."""
    network = text_classifier(model, dataset.num_classes, training.seed)
    fine_tune(network, dataset, training)
    return network.eval()


@pytest.fixture(scope="module")
def known(case, victim):
    states = detection.hidden_states(victim, case.poisoned.dataset, "fp32")
    return DefenderData(case.dev, states, "tiny", seed=SEED)


# ---------------------------------------------------------------------- kernels vs NumPy


@quick
@given(seeds, st.integers(3, 40), st.integers(2, 12))
def test_spectral_scores_are_squared_projections_on_the_top_singular_vector(seed, n, d):
    states = np.random.default_rng(seed).normal(size=(n, d)) * np.arange(1, d + 1) ** 2
    centred = states - states.mean(0)
    _, _, right = np.linalg.svd(centred)
    np.testing.assert_allclose(
        feature_space.spectral_scores(states), (centred @ right[0]) ** 2, rtol=1e-6, atol=1e-8
    )


@quick
@given(seeds, st.integers(1, 20), st.integers(2, 6))
def test_prediction_entropy_is_minus_the_sum_of_p_log2_p(seed, n, k):
    logits = np.random.default_rng(seed).normal(size=(n, k)) * 4
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    want = [-sum(x * math.log2(x) for x in row) for row in p]
    np.testing.assert_allclose(
        perturbation.prediction_entropy(torch.tensor(logits)), want, atol=1e-12
    )


def test_prediction_entropy_of_certainty_is_zero_and_of_indifference_one_bit():
    bits = perturbation.prediction_entropy(torch.tensor([[0.0, 800.0], [3.0, 3.0]]))
    np.testing.assert_allclose(bits, [0, 1])


@quick
@given(seeds, st.integers(1, 60), st.integers(1, 8), st.sampled_from([None, 5.0, 40.0]))
def test_keyword_scores_follow_their_formula(seed, m, vocabulary, most):
    rng = np.random.default_rng(seed)
    ids = np.unique(rng.integers(0, vocabulary, m), return_inverse=True)[1]  # every word occurs
    shifts = rng.random(m)
    want = []
    for word in range(ids.max() + 1):
        mine = shifts[ids == word]
        factor = 1.0 if most is None else math.log10(most / len(mine))
        want.append(np.mean(mine) * math.log10(len(mine)) * factor)
    np.testing.assert_allclose(perturbation.keyword_scores(ids, shifts, most), want, atol=1e-12)


@quick
@given(seeds, st.lists(st.integers(0, 6), min_size=1, max_size=8), st.integers(1, 4))
def test_top_per_row_is_a_sort_of_each_row(seed, sizes, top):
    rows = np.repeat(np.arange(len(sizes)), sizes)
    values = np.random.default_rng(seed).random(len(rows))
    got = perturbation.top_per_row(rows, values, top)
    for row in range(len(sizes)):
        mine = np.flatnonzero(rows == row)
        want = mine[np.argsort(-values[mine])][:top]
        assert got[rows[got] == row].tolist() == want.tolist()


def test_the_silhouette_of_activation_clustering_is_the_textbook_one(case, victim, known):
    """s = (b - a) / max(a, b), a and b the mean distances within and to the other half."""
    dataset = case.poisoned.dataset.select(np.arange(0, len(case.poisoned.dataset), 8))
    states = known.states[::8]
    found = detection.detect_activation(victim, dataset, DefenderData(states=states))
    for k, name in enumerate(dataset.class_names):
        points, small, _ = feature_space.two_halves(
            states[dataset.labels == k].astype(float), 10, 0
        )
        far = np.linalg.norm(points[:, None] - points, axis=2)
        values = []
        for i in range(len(points)):
            same = (small == small[i]) & (np.arange(len(points)) != i)
            a, b = far[i, same].mean() if same.any() else 0, far[i, small != small[i]].mean()
            values.append((b - a) / max(a, b) if same.any() else 0)
        assert found.extra["silhouette"][name] == pytest.approx(np.mean(values), abs=1e-9)
        assert found.extra["share"][name] == pytest.approx(small.mean())


def test_two_halves_finds_the_smaller_of_two_clouds():
    rng = np.random.default_rng(0)
    states = np.concatenate([rng.normal(size=(40, 6)), rng.normal(size=(10, 6)) + 9])
    _, small, nearness = feature_space.two_halves(states, 4, 0)
    assert small.tolist() == [False] * 40 + [True] * 10
    assert ((nearness > 0) == small).all() and np.abs(nearness).max() <= 1


def test_deletions_leave_out_each_word_once():
    short, rows, words = perturbation.deletions(["a b c", "", "d"])
    assert short == ["b c", "a c", "a b", ""]
    assert rows.tolist() == [0, 0, 0, 2] and words.tolist() == ["a", "b", "c", "d"]


def test_ngram_matches_a_plain_count(tiny_weights):
    """A trigram model by dictionaries, on texts of whole-word tokens."""
    train, ask = (
        ["the film is dull", "the film is moving", "a film"],
        ["the film is", "is a dull", "zebra"],
    )
    tokenizer = tiny_weights.tokenizer
    model = NGram(tokenizer, train)
    rows = [["<s>", "<s>", *text.split()] for text in train]
    count = {}
    for row in rows:
        for i in range(2, len(row)):
            for order in (1, 2, 3):
                gram = tuple(row[i - order + 1 : i + 1])
                count[gram] = count.get(gram, 0) + 1
                count[gram[:-1], "context"] = count.get((gram[:-1], "context"), 0) + 1

    def p(u, v, w):
        three, two, one, zero = model.weights
        if not count.get(((u, v), "context")):
            two, three = two + three, 0.0
        if not count.get(((v,), "context")):
            one, two = one + two, 0.0
        total = zero / len(tokenizer) + one * count.get((w,), 0) / count[(), "context"]
        if two:
            total += two * count.get((v, w), 0) / count[(v,), "context"]
        if three:
            total += three * count.get((u, v, w), 0) / count[(u, v), "context"]
        return total

    want = []
    for text in ask:
        row = ["<s>", "<s>", *text.split()]
        want.append(np.mean([-math.log(p(*row[i - 2 : i + 1])) for i in range(2, len(row))]))
    np.testing.assert_allclose(model(ask), want, rtol=1e-12)


def test_causal_fluency_is_the_mean_loss_of_each_text_alone():
    """Padding must not count: a batch gives what each text gives by itself."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from minilib.models.text import text_classifier

    model = CausalFluency.__new__(CausalFluency)
    nn.Module.__init__(model)
    model.tokenizer = text_classifier("tiny", 2, 0).tokenizer
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(model.tokenizer), n_positions=64, n_embd=16, n_layer=1, n_head=2
    )
    model.network = GPT2LMHeadModel(config).eval()
    texts = ["dull", "the film is moving and warm", ""]
    got = model.score(texts)
    for text, value in zip(texts[:2], got, strict=False):
        ids = torch.tensor([model.tokenizer(text)["input_ids"]])
        assert value == pytest.approx(
            model.network(input_ids=ids, labels=ids).loss.item(), rel=0.02
        )
    assert got[2] == got[2]  # an empty text has a value, too


def test_states_do_not_depend_on_how_rows_are_batched(victim, case):
    dataset = case.poisoned.dataset.select([3, 500, 41, 7])
    together = detection.hidden_states(victim, dataset, "fp32")
    alone = [detection.hidden_states(victim, dataset.select([i]), "fp32")[0] for i in range(4)]
    np.testing.assert_allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_collecting_states_and_probing_leave_the_victim_as_it_was(victim, case, training):
    before = {k: v.clone() for k, v in victim.state_dict().items()}
    victim.train(training)
    part = case.poisoned.dataset.select(np.arange(0, len(case.poisoned.dataset), 20))
    known = DefenderData(clean=case.dev.select(np.arange(40)))
    detection.hidden_states(victim, part)
    detection.detect_rap(victim, part, known, epochs=1)
    assert victim.training == training and all(p.requires_grad for p in victim.parameters())
    assert all(torch.equal(before[k], v) for k, v in victim.state_dict().items())
    victim.eval()


# -------------------------------------------------------------------------- what is kept


def blobs(seed: int, groups: int = 3, rows: int = 60):
    """Rows (N, 2) in groups, each thinner than the one before, and the rows of the last group."""
    rng = np.random.default_rng(seed)
    centres = 12.0 * np.stack([np.arange(groups), rng.permutation(groups)], 1)
    spreads = 1 + np.arange(groups)[:, None, None] / 2
    points = (centres[:, None] + spreads * rng.normal(size=(groups, rows, 2))).reshape(-1, 2)
    return points, np.arange(len(points)) >= (groups - 1) * rows


@settings(max_examples=8)
@given(seeds, st.integers(2, 4), st.integers(2, 12))
def test_both_packages_cut_the_same_clusters_where_both_count_the_row_itself(seed, groups, dense):
    points, _ = blobs(seed, groups)
    clusters = feature_space.density_clusters(points, 12, dense)
    tree = feature_space.density_tree(points, 12, dense)
    # Rows at equal distances may fall to either side.
    assert feature_space.rows_moved(clusters, tree.labels_) <= 0.02 * len(points)


@settings(max_examples=8)
@given(seeds, st.integers(2, 4))
def test_branches_hold_the_rows_of_their_clusters_and_thin_out(seed, groups):
    points, poisoned = blobs(seed, groups)
    tree = feature_space.density_tree(points, 12, 8)
    branches = {one["branch"]: one for one in feature_space.tree_branches(tree, poisoned)}
    trunk = branches[min(branches)]
    assert (trunk["parent"], trunk["rows"][0], trunk["poisons"][0]) == (
        None, len(points), poisoned.sum(),
    )  # fmt: skip
    for one in branches.values():
        assert (np.diff(one["rows"]) <= 0).all() and (np.diff(one["poisons"]) <= 0).all()
        children = [it for it in branches.values() if it["parent"] == one["branch"]]
        assert sum(it["rows"][0] for it in children) <= one["rows"][-1]
        assert all(it["born"] == one["died"] for it in children)
    by_cluster = {one["cluster"]: one for one in branches.values() if one["cluster"] is not None}
    assert set(by_cluster) == set(tree.labels_) - {-1}
    for cluster, one in by_cluster.items():
        members = tree.labels_ == cluster
        assert (one["rows"][0], one["poisons"][0]) == (members.sum(), (members & poisoned).sum())


def test_rows_that_change_company_are_counted():
    clusters = np.array([0, 0, 0, 1, 1, -1])
    assert feature_space.rows_moved(clusters, np.array([5, 5, 5, 0, 0, -1])) == 0  # other names
    assert feature_space.rows_moved(clusters, np.array([0, 0, -1, 1, 1, -1])) == 1
    assert feature_space.rows_moved(clusters, np.zeros(6, int)) == 3  # merged with the largest


def test_other_rows_are_laid_where_the_map_has_their_like():
    states = np.random.default_rng(0).normal(size=(80, 6)).astype(np.float32)
    points, place = feature_space.fitted_map(states, feature_space.RECIPES["pca"], 0)
    np.testing.assert_allclose(place(states[:9]), points[:9], atol=1e-5)


def test_what_each_rule_keeps():
    """Class 0: clusters 0 (5 rows), 1 (3), noise (1). Class 1: cluster 1 (4), cluster 2 (2)."""
    clusters = np.array([0] * 5 + [1] * 3 + [-1] + [1] * 4 + [2] * 2)
    labels = np.array([0] * 9 + [1] * 6)
    suspects = {k: feature_space.outside_largest(clusters, labels, k) for k in ("class", "global")}
    assert np.flatnonzero(suspects["class"]).tolist() == [5, 6, 7, 8, 13, 14]
    assert np.flatnonzero(suspects["global"]).tolist() == [8, 13, 14]  # cluster 1 has 7 rows


def test_rule_half_keeps_every_cluster_with_half_of_its_class():
    clusters, labels = np.array([0, 0, 0, -1, -1, 1]), np.zeros(6, int)
    assert (
        feature_space.outside_largest(clusters, labels, "half").tolist() == [False] * 3 + [True] * 3
    )
    assert not feature_space.outside_largest(clusters[1:5], labels[1:5], "half").any()


@pytest.mark.parametrize("keep", ["class", "global", "half"])
def test_noise_alone_accuses_nobody(keep):
    noise = np.full(6, -1)
    assert not feature_space.outside_largest(noise, np.array([0, 0, 0, 1, 1, 1]), keep).any()


def test_recipes_scale_with_the_rows_but_never_upwards():
    recipe = detection.RECIPES["rga"]
    assert (recipe.min_cluster, recipe.min_samples, recipe.neighbours) == (150, 120, 100)
    assert recipe.scaled(7000) == recipe == recipe.scaled(50_000)
    half = recipe.scaled(3500)
    assert (half.min_cluster, half.min_samples) == (75, 60)


# ------------------------------------------------------------------- verdicts on toy data


@nightly
@pytest.mark.trained
def test_cube_finds_the_built_in_badnets_rows():
    """Pre-trained victims after one epoch: most have their poisons in a cluster of their own."""
    by_f1 = []
    for seed in SEEDS:
        found_case = text_victims.scenario("toy-reviews", "badnets", 0.1, seed)
        dataset, truth = found_case.poisoned.dataset, found_case.poisoned.mask
        once = TrainSettings(epochs=1, lr=1e-4, precision="fp32", seed=seed)
        network = tuned(dataset, "minilm", once)
        known = DefenderData(states=detection.hidden_states(network, dataset, "fp32"), seed=seed)
        found = detection.detect_cube(network, dataset, known, "pca")
        by_class = detection.refilter(found, dataset, "class")
        by_f1.append((quality(found.mask, truth)["f1"], quality(by_class.mask, truth)["recall"]))
    assert median(f1 for f1, _ in by_f1) >= 70, by_f1
    assert median(recall for _, recall in by_f1) >= 80, by_f1  # and clean rows with a wrong label


def test_a_map_of_two_dimensions_by_either_way(known):
    states = known.states[::5]
    for how in ("umap", "tsne"):
        points = feature_space.plane(states, how, 20, seed=1)
        assert points.shape == (len(states), 2) and np.isfinite(points).all()
        assert (points == feature_space.plane(states, how, 20, seed=1)).all()
    with pytest.raises(ValueError, match="how is 'pca'; accepted: umap, tsne"):
        feature_space.plane(states, "pca", 20, seed=1)


def test_cube_with_umap_is_the_same_under_a_seed(case, victim, known):
    dataset = case.poisoned.dataset
    part = np.r_[0:200, len(dataset) - 40 : len(dataset)]
    some = DefenderData(states=known.states[part], seed=5)
    one, two = (detection.detect_cube(victim, dataset.select(part), some) for _ in range(2))
    assert (one.mask == two.mask).all() and (one.extra["map"] == two.extra["map"]).all()


CHEAP = {
    "activation": detection.detect_activation,
    "spectral": detection.detect_spectral,
    "onion": detection.detect_onion,
    "strip": partial(detection.detect_strip, repeat=2),
    "rap": partial(detection.detect_rap, epochs=1),
    "bki": detection.detect_bki,
    "moderate": detection.detect_moderate,
}


@pytest.mark.parametrize("name", CHEAP)
def test_a_detector_keeps_the_contract_and_repeats_under_its_seed(name, case, victim, known):
    keep = np.r_[np.arange(0, 800, 5), 800 : len(case.poisoned.dataset)]
    dataset, states = case.poisoned.dataset.select(keep), known.states[keep]
    given = DefenderData(known.clean, states, "tiny", seed=3)
    one, two = (CHEAP[name](victim, dataset, given) for _ in range(2))
    assert one.mask.shape == (len(dataset),) and one.mask.dtype == bool
    assert one.score.shape == (len(dataset),) and np.isfinite(one.score).all()
    assert one.seconds > 0
    assert (one.mask == two.mask).all() and (one.score == two.score).all()


@pytest.mark.trained
def test_onion_finds_the_word(case, victim, known):
    found = detection.detect_onion(victim, case.poisoned.dataset, known)
    assert ranking(found.score, case.poisoned.mask)["auroc"] >= 90
    rows = np.flatnonzero(case.poisoned.mask)
    assert np.mean([found.extra["words"][i] == "mn" for i in rows]) > 0.8


@pytest.mark.trained
@pytest.mark.parametrize("alpha", [None, 0.1])
def test_bki_finds_the_word_however_often_it_occurs(case, victim, known, alpha):
    """Public codes sort by log10(n) · mean shift; a factor of ours had turned against the trigger
    where it stood in more than a few texts."""
    dataset, truth = case.poisoned.dataset, case.poisoned.mask
    found = detection.detect_bki(victim, dataset, known, alpha=alpha)
    assert next(iter(found.extra["keywords"])) == "mn" and quality(found.mask, truth)["f1"] > 90


def test_bki_scores_by_hand():
    """Word 0 in 4 texts, word 1 in 1, word 2 in 100."""
    ids = np.array([0] * 4 + [1] + [2] * 100)
    shifts = np.array([2.0] * 4 + [9.0] + [0.5] * 100)
    plain = perturbation.keyword_scores(ids, shifts, None)
    np.testing.assert_allclose(plain, [2 * np.log10(4), 0, 0.5 * 2])
    rare = perturbation.keyword_scores(ids, shifts, 400.0)
    np.testing.assert_allclose(rare, [2 * np.log10(4) * 2, 0, 0.5 * 2 * np.log10(4)])


@pytest.mark.trained
def test_rap_sets_its_threshold_by_what_the_victim_puts_into_the_class(
    case, victim, known, monkeypatch
):
    """Clean rows that the victim puts elsewhere have nothing to lose, and look triggered."""
    asked = []
    real = perturbation.Probe.fall
    monkeypatch.setattr(
        perturbation.Probe, "fall",
        lambda probe, texts: asked.append((probe.k, list(texts))) or real(probe, texts),
    )  # fmt: skip
    wrong = replace(known.clean, labels=1 - known.clean.labels)  # the victim contradicts each label
    mixed = replace(
        known.clean, texts=known.clean.texts * 2,
        labels=np.concatenate([known.clean.labels, wrong.labels]),
    )  # fmt: skip
    detection.detect_rap(victim, case.poisoned.dataset, DefenderData(mixed, seed=3), epochs=1)
    classes = perturbation.victim_logits(victim, mixed.texts).argmax(-1).numpy()
    for (k, texts), (again, _) in zip(asked[::2], asked[1::2], strict=True):
        inside = [text for text, c in zip(mixed.texts, classes, strict=True) if c == k]
        assert k == again and texts == inside


@pytest.mark.trained
def test_onion_takes_out_the_trigger_and_leaves_rows_and_labels(case, victim, known):
    dataset, truth = case.poisoned.dataset, case.poisoned.mask
    rest = detection.without_outliers(victim.tokenizer, dataset, known)
    assert len(rest) == len(dataset) and (rest.labels == dataset.labels).all()
    left = ["mn" in rest.texts[row].split() for row in np.flatnonzero(truth)]
    assert np.mean(left) < 0.1
    same = detection.without_outliers(victim.tokenizer, dataset, known, bar=np.inf)
    assert same.texts == tuple(" ".join(text.split()) for text in dataset.texts)
    none = detection.without_outliers(
        victim.tokenizer,
        dataset,
        known,
        lambda texts: -np.array([len(text.split()) for text in texts], float),
        bar=-np.inf,
    )
    assert all(none.texts), "no text is emptied"


def test_without_poison_only_the_false_positives_mean_something(case, victim):
    dataset, none = case.clean, np.zeros(len(case.clean), bool)
    for name in ("activation", "spectral"):
        found = CHEAP[name](victim, dataset, DefenderData())
        judged = quality(found.mask, none) | ranking(found.score, none)
        assert 0 <= judged["fpr"] <= 100
        assert math.isnan(judged["f1"]) and math.isnan(judged["auroc"])
    assert judged["fpr"] == pytest.approx(15, abs=0.5)  # 1.5 × 10 %, whatever the rows are


# -------------------------------------------------------------------------- masks, judged


def test_quality_and_ranking_by_hand():
    truth = np.array([1, 1, 1, 0, 0, 0, 0], bool)
    judged = quality(np.array([1, 1, 0, 1, 0, 0, 0], bool), truth)
    assert judged["precision"] == judged["recall"] == judged["f1"] == pytest.approx(200 / 3)
    assert judged["fpr"] == 25 and judged["suspects"] == 3
    assert quality(np.zeros(7, bool), truth)["precision"] == 0
    perfect = ranking(truth.astype(float), truth)
    assert perfect == {"auroc": 100, "ap": 100}
    assert math.isnan(ranking(None, truth)["ap"])


@quick
@given(seeds, st.floats(0.2, 1), st.floats(0.1, 1))
def test_degrade_gives_the_precision_and_recall_asked_for(seed, precision, recall):
    truth = np.arange(1000) % 10 == 0
    mask = degrade(truth, precision, recall, seed)
    judged = quality(mask, truth)
    assert judged["recall"] == pytest.approx(100 * recall, abs=0.51)
    hits, wrong = (mask & truth).sum(), (mask & ~truth).sum()
    # To the nearest row: of ten hits, one wrong row more or less is eight points.
    assert wrong == pytest.approx(hits / precision - hits, abs=0.51)
    assert judged["precision"] == pytest.approx(100 * hits / (hits + wrong))
    assert (
        degrade(truth, precision, recall, seed) == degrade(truth, precision, recall, seed)
    ).all()


def test_degrade_takes_false_positives_from_where_it_is_told():
    truth, among = np.arange(100) < 10, np.arange(100) >= 90
    mask = degrade(truth, 0.5, 1.0, 0, among)
    assert mask[truth].all() and (mask & ~truth)[among].all() and mask.sum() == 20


# ------------------------------------------------------------------------------- refusals


def one_line(error) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", detection.DETECTORS)
def test_a_single_class_is_refused(name, case, victim, known):
    dataset = case.clean.select(case.clean.labels == 1)
    with pytest.raises(ValueError) as error:
        detection.DETECTORS[name](victim, dataset, DefenderData(known.clean, None, "tiny"))
    assert one_line(error).endswith("a single class (positive); accepted: two classes or more")


def test_fewer_rows_than_the_cluster_size_are_refused(case, victim):
    with pytest.raises(ValueError) as error:
        detection.detect_cube(victim, case.clean.select(range(100)), DefenderData(), scale=False)
    assert "has 100 rows; accepted: at least 150" in one_line(error)


@pytest.mark.parametrize("name", ["cube", "activation", "spectral", "bki"])
def test_a_victim_without_hidden_states_is_refused(name, case):
    with pytest.raises(ValueError) as error:
        detection.DETECTORS[name](nn.Linear(2, 2), case.clean, DefenderData())
    assert "a Linear, has no hidden states; accepted: a TextClassifier" in one_line(error)


@pytest.mark.parametrize("name", ["onion", "strip", "rap"])
def test_missing_clean_rows_are_refused(name, case, victim):
    with pytest.raises(ValueError) as error:
        detection.DETECTORS[name](victim, case.poisoned.dataset, DefenderData())
    assert "no clean rows; accepted: one or more" in one_line(error)


WRONG = {
    "unknown recipe": (partial(detection.detect_cube, recipe="dense"), "recipe is 'dense'"),
    "expected": (partial(detection.detect_spectral, expected=0.9), "expected is 0.9"),
    "ratio": (partial(detection.detect_strip, ratio=0), "ratio is 0"),
    "frr": (partial(detection.detect_onion, frr=1.0), "frr is 1.0"),
    "word": (partial(detection.detect_rap, word="uncopyrightable"), "accepted: a single token"),
    "rank": (partial(detection.detect_moderate, rank=0), "rank is 0"),
}


@pytest.mark.parametrize("what", WRONG)
def test_bad_settings_are_refused_in_one_line(what, case, victim, known):
    detect, says = WRONG[what]
    part = case.poisoned.dataset.select(np.arange(0, len(case.poisoned.dataset), 5))
    with pytest.raises(ValueError) as error:
        detect(victim, part, DefenderData(case.dev.select(range(20)), known.states[::5], "tiny"))
    assert says in one_line(error)


def test_states_of_another_set_are_refused(case, victim, known):
    with pytest.raises(ValueError) as error:
        detection.detect_spectral(victim, case.clean, known)
    assert f"accepted: {len(case.clean)}, one a row" in one_line(error)


@pytest.mark.parametrize(
    "arguments, says",
    [((0, 0.5), "precision is 0"), ((0.5, 1.5), "recall is 1.5"), ((0.01, 1), "false positives")],
)
def test_degrade_refuses_what_cannot_be(arguments, says):
    with pytest.raises(ValueError) as error:
        degrade(np.arange(100) < 10, *arguments, seed=0)
    assert says in one_line(error)


def test_a_recipe_that_keeps_something_unknown_is_refused():
    with pytest.raises(ValueError, match="keep is 'most'; accepted: class, global, half"):
        detection.Recipe(keep="most")


def test_clean_threshold_rejects_the_share_it_was_given():
    scores = np.arange(1000.0)
    assert (scores > common.clean_threshold(scores, 0.05)).mean() == pytest.approx(0.05, abs=2e-3)


@pytest.mark.parametrize("wrong", ["hsol", "hsol/", "nowhere/minilm", ",", "none,hsol"])
def test_a_pair_that_names_no_data_or_no_model_is_refused(wrong):
    with pytest.raises(ValueError, match="accepted"):
        TextDetectionSettings(other_victims=wrong)
