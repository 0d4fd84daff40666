"""Detectors that look at where rows lie in the victim's hidden space."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..data import TextDataset
from ..models import TextClassifier
from .evidence import Detection, Knowledge, check_rows, check_states, hidden_states

# The recipes' sizes are absolute; the sets that their authors used them on have about this many
# rows (5,800 to 8,600), so that smaller sets get proportionally smaller sizes.
RECIPE_ROWS = 7000


@dataclass(frozen=True)
class Recipe:
    """How CUBE reduces, clusters and filters; sizes in rows, for a set of RECIPE_ROWS.

    Attributes:
        pca: dimensions after PCA, before UMAP; 0 leaves PCA out.
        dims, neighbours, min_dist, metric: of UMAP; ``dims`` 0 leaves UMAP out.
        min_cluster, min_samples: of HDBSCAN.
        keep: what is *not* suspect: ``class``, the largest cluster of each class's rows;
            ``global``, the K largest clusters of all rows; ``half``, as ``class`` and also clusters
            (noise counts as one) that hold half of their class or more.
    """

    pca: int = 0
    dims: int = 4
    neighbours: int = 100
    min_dist: float = 0.25
    metric: str = "cosine"
    min_cluster: int = 150
    min_samples: int = 120
    keep: str = "class"

    def __post_init__(self):
        if self.keep not in ("class", "global", "half"):
            raise ValueError(f"keep is {self.keep!r}; accepted: class, global, half")

    def scaled(self, rows: int) -> Recipe:
        """Return the recipe with cluster sizes in proportion to ``rows``, where those are fewer.

        UMAP's neighbourhood is no size of a cluster but what holds the map together: it only
        shrinks where it would span an eighth of the set.
        """
        share = min(1.0, rows / RECIPE_ROWS)
        return replace(
            self,
            neighbours=max(10, min(self.neighbours, rows // 8)),
            min_cluster=max(5, round(share * self.min_cluster)),
            min_samples=max(5, round(share * self.min_samples)),
        )


# "rga": RGA paper, B.2. "rga-code": its released code, which keeps as many clusters as there are
# classes, whatever their labels. "cube": Cui et al. (2022) as OpenBackdoor releases it; there
# HDBSCAN's min_cluster_size stays at its default of 5.
# "pca" is ours: no UMAP, which tears the few hundred short sentences of a built-in set apart, by
# the phrases that they are made of.
RECIPES = {
    "pca": Recipe(pca=2, dims=0, metric="euclidean", keep="global"),
    "rga": Recipe(),
    "rga-code": Recipe(keep="global"),
    "cube": Recipe(20, 2, 100, 0.0, "euclidean", min_cluster=5, min_samples=100, keep="half"),
}


def detect_cube(
    victim: TextClassifier,
    dataset: TextDataset,
    known: Knowledge,
    recipe: str | Recipe = "rga",
    scale: bool = True,
) -> Detection:
    """CUBE: poisoned rows share a cause, so they form a small cluster of their own.

    Args:
        recipe: a name in RECIPES, or one's own. scale: fit its sizes to the number of rows.

    Returns:
        Detection without a score; ``extra`` has ``clusters`` (N,) int, -1 for noise, and ``map``
        (N, dims), the reduced states.

    Raises:
        ValueError: a single class, fewer rows than the cluster size, no hidden states.

    Needs no clean rows. Source: Cui et al. (2022); RGA paper, B.2. Both train an encoder of their
    own for more epochs; here the victim is the encoder.
    """
    started = time.perf_counter()
    if isinstance(recipe, str):
        if recipe not in RECIPES:
            raise ValueError(f"recipe is {recipe!r}; accepted: {', '.join(RECIPES)}")
        recipe = RECIPES[recipe]
    recipe = recipe.scaled(len(dataset)) if scale else recipe
    least = max(recipe.min_cluster, recipe.min_samples, recipe.neighbours + 1)
    check_rows(dataset, least, "more than the cluster size and the neighbourhood")
    states = given_states(victim, dataset, known)
    reduced = flat_map(states, recipe, known.seed)
    clusters = density_clusters(reduced, recipe.min_cluster, recipe.min_samples)
    mask = outside_largest(clusters, dataset.labels, recipe.keep)
    return Detection(
        "cube", mask, None, time.perf_counter() - started, {"clusters": clusters, "map": reduced}
    )


def refilter(found: Detection, dataset: TextDataset, keep: str) -> Detection:
    """Read CUBE's clusters by another rule: the same map, another ``Recipe.keep``."""
    started = time.perf_counter()
    mask = outside_largest(found.extra["clusters"], dataset.labels, keep)
    seconds = found.seconds + time.perf_counter() - started
    return replace(found, mask=mask, seconds=seconds)


def given_states(victim, dataset: TextDataset, known: Knowledge) -> np.ndarray:
    """Return the shared hidden states, or collect them."""
    if known.states is None:
        return hidden_states(victim, dataset)
    check_states(victim)
    if len(known.states) != len(dataset):
        raise ValueError(f"{len(known.states)} hidden states; accepted: {len(dataset)}, one a row")
    return known.states


def flat_map(states: np.ndarray, recipe: Recipe, seed: int) -> np.ndarray:
    """Reduce states (N, d) to few dimensions, float32, by PCA and UMAP, whichever there is."""
    if recipe.pca:
        from sklearn.decomposition import PCA

        dims = min(recipe.pca, *states.shape)
        states = PCA(dims, svd_solver="full", random_state=seed).fit_transform(states)
    if not recipe.dims:
        return states
    try:
        from umap import UMAP
    except ImportError as error:
        raise RuntimeError("CUBE's map needs umap-learn: pip install umap-learn") from error
    mapper = UMAP(
        n_components=recipe.dims,
        n_neighbors=recipe.neighbours,
        min_dist=recipe.min_dist,
        metric=recipe.metric,
        random_state=seed,
        n_jobs=1,  # what a seed asks for anyway; named, it does not warn
    )
    threads = torch.get_num_threads()
    try:
        return mapper.fit_transform(states)
    finally:
        torch.set_num_threads(threads)  # numba and PyTorch may share a pool, which UMAP widens


def density_clusters(points: np.ndarray, min_cluster: int, min_samples: int) -> np.ndarray:
    """HDBSCAN: clusters (N,) int64, -1 for noise.

    scikit-learn's is the algorithm of the package hdbscan, without its compiled dependency.
    """
    from sklearn.cluster import HDBSCAN

    model = HDBSCAN(min_cluster_size=min_cluster, min_samples=min_samples, copy=True)
    return model.fit_predict(points.astype(np.float64)).astype(np.int64)


def outside_largest(clusters: np.ndarray, labels: np.ndarray, keep: str) -> np.ndarray:
    """Mark the rows (N,) bool outside the clusters that ``keep`` keeps; see ``Recipe``.

    A class of which no row is in any cluster has no suspects: noise alone accuses nobody.
    """
    classes = np.unique(labels)
    if keep == "global":
        found, sizes = np.unique(clusters[clusters >= 0], return_counts=True)
        largest = found[np.argsort(-sizes, kind="stable")][: len(classes)]
        return ~np.isin(clusters, largest) if len(found) else np.zeros(len(labels), bool)
    mask = np.zeros(len(labels), bool)
    for k in classes:
        mine = labels == k
        found, sizes = np.unique(clusters[mine], return_counts=True)
        if keep == "half":
            kept = {found[sizes.argmax()], *found[sizes >= mine.sum() / 2]}
        else:
            sizes = np.where(found >= 0, sizes, 0)
            kept = {found[sizes.argmax()]}  # noise, if there is nothing else
        mask |= mine & ~np.isin(clusters, list(kept))
    return mask


def detect_activation(
    victim: TextClassifier,
    dataset: TextDataset,
    known: Knowledge,
    dims: int = 10,
    max_share: float = 0.35,
    min_silhouette: float = 0.1,
) -> Detection:
    """Activation clustering: split each class in two; a small, well separated half is suspect.

    Args:
        dims: dimensions after PCA. max_share: largest share of its class that a suspect half holds.
        min_silhouette: least mean silhouette of the split, in [-1, 1].

    Returns:
        Detection; the score, in [-1, 1], says how much nearer a row is to the centre of its class's
        smaller half. ``extra`` has per class ``share`` and ``silhouette``.

    Raises:
        ValueError: a single class, a class of fewer than 3 rows, no hidden states.

    Needs no clean rows. Source: Chen et al. (2018), which reduces by ICA where PCA stands here, and
    offers relative size and silhouette as alternatives where both count here.
    """
    from sklearn.metrics import silhouette_score

    started = time.perf_counter()
    check_rows(dataset)
    states = given_states(victim, dataset, known).astype(np.float64)
    mask, score = np.zeros(len(dataset), bool), np.zeros(len(dataset))
    extra = {"share": {}, "silhouette": {}}
    for k in np.unique(dataset.labels):
        rows = np.flatnonzero(dataset.labels == k)
        if len(rows) < 3:
            raise ValueError(
                f"class {k} of {dataset.name} has {len(rows)} rows; accepted: 3 or more"
            )
        points, small, score[rows] = two_halves(states[rows], dims, known.seed)
        share = float(small.mean())
        separation = float(silhouette_score(points, small)) if 0 < share < 1 else 0.0
        mask[rows] = small & (share <= max_share) & (separation >= min_silhouette)
        name = dataset.class_names[k]
        extra["share"][name], extra["silhouette"][name] = share, separation
    return Detection("activation", mask, score, time.perf_counter() - started, extra)


def two_halves(states: np.ndarray, dims: int, seed: int):
    """Split states (n, d) by PCA and 2-means.

    Returns:
        points (n, dims); small (n,) bool, the smaller half; nearness (n,) in [-1, 1], positive for
        the rows of the smaller half: (distance to the larger's centre − to the smaller's) / sum.
    """
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    points = PCA(min(dims, *states.shape), svd_solver="full").fit_transform(states)
    model = KMeans(2, n_init=10, random_state=seed).fit(points)
    smaller = int(np.bincount(model.labels_, minlength=2).argmin())
    far = np.linalg.norm(points[:, None] - model.cluster_centers_, axis=2)  # (n, 2)
    nearness = (far[:, 1 - smaller] - far[:, smaller]) / far.sum(1).clip(1e-12)
    return points, model.labels_ == smaller, nearness


def detect_spectral(
    victim: TextClassifier, dataset: TextDataset, known: Knowledge, expected: float = 0.1
) -> Detection:
    """Spectral signatures: poisons stand out along the top singular direction of their class.

    Args:
        expected: upper bound on the poisoned share of a class; 1.5 times as many rows are suspect.

    Returns:
        Detection; the score is the squared projection, divided by its class's mean.

    Raises:
        ValueError: a single class, a share out of range, no hidden states.

    Needs no clean rows, but a bound on the share, and it accuses that many rows of *every* class,
    poisoned or not. Source: Tran et al. (2018), Algorithm 1.
    """
    started = time.perf_counter()
    if not 0 < expected < 2 / 3:
        raise ValueError(f"expected is {expected!r}; accepted: a share in (0, 2/3)")
    check_rows(dataset)
    states = given_states(victim, dataset, known)
    mask, score = np.zeros(len(dataset), bool), np.zeros(len(dataset))
    for k in np.unique(dataset.labels):
        rows = np.flatnonzero(dataset.labels == k)
        raw = spectral_scores(states[rows])
        score[rows] = raw / max(raw.mean(), 1e-12)
        mask[rows[np.argsort(-raw, kind="stable")[: round(1.5 * expected * len(rows))]]] = True
    return Detection("spectral", mask, score, time.perf_counter() - started)


def spectral_scores(states: np.ndarray) -> np.ndarray:
    """Squared projection (n,) float64 of the centred states (n, d) on their top right vector."""
    centred = states.astype(np.float64) - states.mean(0, dtype=np.float64)
    # The d × d eigenproblem is smaller than the n × d singular value problem, and d is ≤ 1,000.
    _, vectors = np.linalg.eigh(centred.T @ centred)  # eigenvalues ascend
    return (centred @ vectors[:, -1]) ** 2
