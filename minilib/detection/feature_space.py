"""Detectors that look at where rows lie in the victim's hidden space."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..checks import one_of
from ..data.text import TextDataset
from ..models.text import TextClassifier
from .common import DefenderData, Detection, check_rows, check_states, hidden_states

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
        one_of("keep", self.keep, ("class", "global", "half"))

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
    known: DefenderData,
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
        one_of("recipe", recipe, RECIPES)
        recipe = RECIPES[recipe]
    recipe = recipe.scaled(len(dataset)) if scale else recipe
    min_rows = max(recipe.min_cluster, recipe.min_samples, recipe.neighbours + 1)
    check_rows(dataset, min_rows, "more than the cluster size and the neighbourhood")
    states = given_states(victim, dataset, known)
    points = flat_map(states, recipe, known.seed)
    clusters = density_clusters(points, recipe.min_cluster, recipe.min_samples)
    mask = outside_largest(clusters, dataset.labels, recipe.keep)
    return Detection(
        "cube", mask, None, time.perf_counter() - started, {"clusters": clusters, "map": points}
    )


def refilter(found: Detection, dataset: TextDataset, keep: str) -> Detection:
    """Read CUBE's clusters by another rule: the same map, another ``Recipe.keep``."""
    started = time.perf_counter()
    mask = outside_largest(found.extra["clusters"], dataset.labels, keep)
    seconds = found.seconds + time.perf_counter() - started
    return replace(found, mask=mask, seconds=seconds)


def given_states(victim, dataset: TextDataset, known: DefenderData) -> np.ndarray:
    """Return the shared hidden states, or collect them."""
    if known.states is None:
        return hidden_states(victim, dataset)
    check_states(victim)
    if len(known.states) != len(dataset):
        raise ValueError(f"{len(known.states)} hidden states; accepted: {len(dataset)}, one a row")
    return known.states


def flat_map(states: np.ndarray, recipe: Recipe, seed: int) -> np.ndarray:
    """Reduce states (N, d) to few dimensions, float32, by PCA and UMAP, whichever there is."""
    return fitted_map(states, recipe, seed)[0]


def fitted_map(states: np.ndarray, recipe: Recipe, seed: int):
    """As ``flat_map``: the points, and a function that lays other states (n, d) on the same map."""
    steps = []
    if recipe.pca:
        from sklearn.decomposition import PCA

        dims = min(recipe.pca, *states.shape)
        steps.append(PCA(dims, svd_solver="full", random_state=seed))
    if recipe.dims:
        steps.append(_umap(recipe, seed))

    def through(points: np.ndarray, method: str) -> np.ndarray:
        threads = torch.get_num_threads()
        try:
            for step in steps:
                points = getattr(step, method)(points)
        finally:
            torch.set_num_threads(threads)  # numba and PyTorch may share a pool, which UMAP widens
        return points

    return through(states, "fit_transform"), lambda others: through(others, "transform")


def _umap(recipe: Recipe, seed: int):
    try:
        from umap import UMAP
    except ImportError as error:
        raise RuntimeError("CUBE's map needs umap-learn: pip install umap-learn") from error
    return UMAP(
        n_components=recipe.dims,
        n_neighbors=recipe.neighbours,
        min_dist=recipe.min_dist,
        metric=recipe.metric,
        random_state=seed,
        n_jobs=1,  # what a seed asks for anyway; named, it does not warn
    )


def plane(states: np.ndarray, how: str, neighbours: int, seed: int) -> np.ndarray:
    """Flatten states (N, d) to (N, 2) float32 for the eye, by PCA-20 and then UMAP or t-SNE.

    Args:
        how: ``umap`` or ``tsne``. neighbours: UMAP's.

    Raises:
        ValueError: another way.
    """
    one_of("how", how, ("umap", "tsne"))
    recipe = replace(RECIPES["cube"], neighbours=neighbours, min_dist=0.25).scaled(len(states))
    if how == "umap":
        return flat_map(states, recipe, seed)
    from sklearn.manifold import TSNE

    return TSNE(random_state=seed).fit_transform(flat_map(states, replace(recipe, dims=0), seed))


def density_clusters(points: np.ndarray, min_cluster: int, min_samples: int) -> np.ndarray:
    """HDBSCAN: clusters (N,) int64, -1 for noise.

    scikit-learn's, which needs no compiled package of its own. Its ``min_samples`` counts the point
    itself; that of the package hdbscan, which CUBE's authors use, does not.
    """
    from sklearn.cluster import HDBSCAN

    model = HDBSCAN(min_cluster_size=min_cluster, min_samples=min_samples, copy=True)
    return model.fit_predict(points.astype(np.float64)).astype(np.int64)


def density_tree(points: np.ndarray, min_cluster: int, min_samples: int, approximate: bool = False):
    """The same clusters by the package hdbscan, which keeps the tree that they are cut from.

    Args:
        min_samples: rows that make a place dense, the point itself among them, as in
            ``density_clusters``. approximate: an approximate spanning tree, the package's default.

    Returns:
        Fitted ``hdbscan.HDBSCAN``: ``condensed_tree_``, ``labels_``, ``probabilities_`` (how firmly
        a row belongs to its cluster, in [0, 1]), and data for ``hdbscan.approximate_predict``.

    Raises:
        RuntimeError: the package is not installed.
    """
    try:
        from hdbscan import HDBSCAN
    except ImportError as error:
        raise RuntimeError("the tree of clusters needs hdbscan: pip install hdbscan") from error
    model = HDBSCAN(
        min_cluster_size=min_cluster,
        min_samples=max(1, min_samples - 1),
        approx_min_span_tree=approximate,
        prediction_data=True,
    )
    return model.fit(points.astype(np.float64))


TREE_STEPS = 9  # densities at which a branch's rows are counted


def tree_branches(model, truth: np.ndarray) -> list[dict]:
    """The branches of a fitted tree, the trunk first; one dict a branch.

    Args:
        model: of ``density_tree``. truth: (N,) bool, the poisoned rows.

    Returns ``branch`` and ``parent`` (None of the trunk), ``born`` and ``died``: densities λ (one
    over a distance) at which the branch splits off, and at which it splits or its last row is gone;
    ``rows`` and ``poisons`` at TREE_STEPS densities from the one to the other, each the same factor
    above the last (of the trunk, from a tenth of its last); ``cluster``: its number among HDBSCAN's
    clusters, None where it is none.
    """
    edges = model.condensed_tree_.to_pandas()
    density = edges["lambda_val"].replace(np.inf, np.nan)
    edges["lambda_val"] = density.fillna(density.max() if density.notna().any() else 1.0)
    splits = edges[edges["child"] >= len(truth)].set_index("child")
    leaves = edges[edges["child"] < len(truth)]
    branches, taken = [], {-1}
    for number in sorted(edges["parent"].unique()):
        born = float(splits["lambda_val"].get(number, 0.0))
        died = float(edges.loc[edges["parent"] == number, "lambda_val"].max())
        # A row is in the branch until it drops out of it, or out of one that splits off from it.
        rows, leaves_at = _rows_of(number, splits, leaves, died)
        steps = np.geomspace(born or died / 10, died, TREE_STEPS)
        alive = leaves_at[:, None] >= steps * (1 - 1e-12)  # (rows, densities)
        # A cluster is the first branch, from the trunk on, all of whose rows are in it.
        labels = set(model.labels_[rows].tolist())
        cluster = labels.pop() if len(labels) == 1 and not labels & taken else None
        taken.add(cluster)
        branches.append(
            {
                "branch": int(number),
                "parent": int(splits["parent"][number]) if number in splits.index else None,
                "born": born,
                "died": died,
                "rows": alive.sum(0).tolist(),
                "poisons": alive[truth[rows]].sum(0).tolist(),
                "cluster": cluster,
            }
        )
    return branches


def _rows_of(branch: int, splits, leaves, died: float) -> tuple[np.ndarray, np.ndarray]:
    """The rows of a branch, and the density at which each leaves it."""
    own = leaves[leaves["parent"] == branch]
    rows, densities = [own["child"].to_numpy()], [own["lambda_val"].to_numpy()]
    for child in splits.index[splits["parent"] == branch]:
        rows.append(_rows_of(child, splits, leaves, died)[0])
        densities.append(np.full(len(rows[-1]), died))
    return np.concatenate(rows), np.concatenate(densities)


def rows_moved(clusters: np.ndarray, others: np.ndarray) -> int:
    """Rows of N in two clusterings (N,) that are in no pair of clusters that answer each other.

    Clusters answer each other one to one, so that as many rows as can be agree; noise is one, too.
    """
    from scipy.optimize import linear_sum_assignment

    table = np.zeros((clusters.max() + 2, others.max() + 2), int)
    np.add.at(table, (clusters + 1, others + 1), 1)
    return int(len(clusters) - table[linear_sum_assignment(table, maximize=True)].sum())


def outside_largest(clusters: np.ndarray, labels: np.ndarray, keep: str) -> np.ndarray:
    """Mark the rows (N,) bool outside the clusters that ``keep`` keeps; see ``Recipe``.

    A class of which no row is in any cluster has no suspects: noise alone accuses nobody.
    """
    classes = np.unique(labels)
    if keep == "global":
        cluster_ids, sizes = np.unique(clusters[clusters >= 0], return_counts=True)
        largest = cluster_ids[np.argsort(-sizes, kind="stable")][: len(classes)]
        return ~np.isin(clusters, largest) if len(cluster_ids) else np.zeros(len(labels), bool)
    mask = np.zeros(len(labels), bool)
    for k in classes:
        class_rows = labels == k
        cluster_ids, sizes = np.unique(clusters[class_rows], return_counts=True)
        if keep == "half":
            kept_ids = {cluster_ids[sizes.argmax()], *cluster_ids[sizes >= class_rows.sum() / 2]}
        else:
            kept_ids = {largest_cluster(clusters[class_rows])}
        mask |= class_rows & ~np.isin(clusters, list(kept_ids))
    return mask


def largest_cluster(clusters: np.ndarray) -> int:
    """The cluster with most of some rows' clusters (n,); noise, -1, if there is nothing else."""
    cluster_ids, sizes = np.unique(clusters, return_counts=True)
    return int(cluster_ids[np.where(cluster_ids >= 0, sizes, 0).argmax()])


def detect_activation(
    victim: TextClassifier,
    dataset: TextDataset,
    known: DefenderData,
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
        points, small_half, score[rows] = two_halves(states[rows], dims, known.seed)
        share = float(small_half.mean())
        separation = float(silhouette_score(points, small_half)) if 0 < share < 1 else 0.0
        mask[rows] = small_half & (share <= max_share) & (separation >= min_silhouette)
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
    small_id = int(np.bincount(model.labels_, minlength=2).argmin())
    distances = np.linalg.norm(points[:, None] - model.cluster_centers_, axis=2)  # (n, 2)
    nearness = (distances[:, 1 - small_id] - distances[:, small_id]) / distances.sum(1).clip(1e-12)
    return points, model.labels_ == small_id, nearness


def detect_spectral(
    victim: TextClassifier, dataset: TextDataset, known: DefenderData, expected: float = 0.1
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
