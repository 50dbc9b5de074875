r"""How far two samples are apart: classifier, Wasserstein and kernel distances, `a, b -> number`.

Samples are arrays `(points, dimensions)`; a vector is one dimension. Nothing here knows of
posteriors: give draws of one and of an exact reference, or joint pairs $(\theta, x)$ with the truth
on one side and posterior draws on the other.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float

from sgjax._types import PRNGKey

NUM_PERMUTATIONS = 1000
"""Exchanges of the two samples that the null of `mmd` is made of."""


@dataclasses.dataclass(frozen=True)
class C2ST:
    """What a classifier made of two samples: 0.5 where it cannot tell them apart, at most 1.

    `accuracy` is the mean over the folds. `null` holds the accuracies after the points of both
    samples were exchanged at random, and `p_value` the place of `accuracy` among them; both are
    empty without `num_null`.
    """

    accuracy: float
    fold_accuracies: Float[np.ndarray, " folds"]
    null: Float[np.ndarray, " exchanges"]

    @property
    def folded(self) -> float:
        """max(a, 1 - a), as some papers report it: above 0.5 even for equal laws."""
        return max(self.accuracy, 1 - self.accuracy)

    @property
    def p_value(self) -> float | None:
        r"""$(1 + \#\{a_0 \ge a\}) / (1 + n)$ over the exchanges."""
        if not self.null.size:
            return None
        return float((1 + np.sum(self.null >= self.accuracy)) / (1 + self.null.size))


def c2st(
    a: ArrayLike,
    b: ArrayLike,
    *,
    seed: int = 0,
    folds: int = 5,
    num_null: int = 0,
) -> C2ST:
    r"""Held-out accuracy of a network that is to tell two samples apart (Lopez-Paz & Oquab, 2017).

    As simulation-based inference uses it (Lueckmann et al., 2021): two hidden layers of ten units
    per dimension, trained by Adam, both samples scaled by mean and sd of the first, accuracy over
    `folds` that share no point. For $n$ points of each law and one split of half the points the
    null sd is $1 / (2 \sqrt n)$; that of folds is not known in closed form, so `num_null` exchanges
    of the points measure it, each at the cost of the test itself.

    Raises `ValueError` where the samples do not match or hold fewer points than folds, and
    `ImportError` without scikit-learn.
    """
    first, second = _pair(a, b)
    if min(len(first), len(second)) < folds or folds < 2:
        raise ValueError(f"`folds` {folds} must be 2 at least, and at most the points of a sample.")
    shift, scale = first.mean(0), first.std(0)
    pool = (np.concatenate([first, second]) - shift) / np.where(scale > 0, scale, 1)
    labels = np.repeat([0, 1], [len(first), len(second)])
    accuracies = _fold_accuracies(pool, labels, folds, seed)
    random = np.random.default_rng(seed)
    null = [
        _fold_accuracies(pool, random.permutation(labels), folds, seed).mean()
        for _ in range(num_null)
    ]
    return C2ST(float(accuracies.mean()), accuracies, np.array(null))


def _fold_accuracies(pool: np.ndarray, labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    try:
        from sklearn.model_selection import KFold, cross_val_score
        from sklearn.neural_network import MLPClassifier
    except ImportError:
        raise ImportError(
            "`c2st` needs scikit-learn: pip install scikit-learn, or 'sgjax[bench]'. "
            "`mmd` and `sliced_wasserstein` do without."
        ) from None
    width = 10 * pool.shape[1]
    network = MLPClassifier(
        hidden_layer_sizes=(width, width), solver="adam", max_iter=10_000, random_state=seed
    )
    split = KFold(n_splits=folds, shuffle=True, random_state=seed)
    return np.asarray(cross_val_score(network, pool, labels, cv=split, scoring="accuracy"))


def wasserstein_1(
    values: ArrayLike,
    weights: ArrayLike | None,
    other_values: ArrayLike,
    other_weights: ArrayLike | None,
) -> float:
    r"""$W_1 = \int |F(t) - G(t)| \, dt$ of two weighted samples of numbers, in their unit.

    Weights need not sum to one; `None` means equal ones. Source: Vallender (1974). Raises
    `ValueError` for weights that are no weights.
    """
    ours, theirs = np.asarray(values, float).ravel(), np.asarray(other_values, float).ravel()
    everything = np.concatenate([ours, theirs])
    steps = np.concatenate([_shares(weights, ours.size), -_shares(other_weights, theirs.size)])
    order = np.argsort(everything, kind="stable")
    gaps = np.diff(everything[order])
    return float(np.sum(np.abs(np.cumsum(steps[order])[:-1]) * gaps))


def _shares(weights: ArrayLike | None, size: int) -> Float[np.ndarray, " points"]:
    shares = np.ones(size) if weights is None else np.asarray(weights, float).ravel()
    if shares.size != size or not np.all(shares >= 0) or not 0 < shares.sum() < np.inf:
        raise ValueError(
            f"{size} values need as many finite weights, none negative and not all 0; "
            f"got {shares.size} with sum {shares.sum():g}."
        )
    return shares / shares.sum()


def sliced_wasserstein(
    a: ArrayLike, b: ArrayLike, key: PRNGKey, *, num_directions: int = 200, order: int = 2
) -> float:
    r"""$(E_u \, W_p^p(u \cdot a, u \cdot b))^{1/p}$, $u$ uniform on the sphere, $p$ = `order`.

    The transport cost along random lines, of any number of points in any dimension (Bonneel et al.,
    2015). Components count in their own units: scale them first where these differ.
    """
    first, second = _pair(a, b)
    # Between these shares the quantile functions of both samples are constant.
    edges = np.union1d(
        np.arange(len(first) + 1) / len(first), np.arange(len(second) + 1) / len(second)
    )
    middle, width = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
    places = [np.minimum((middle * n).astype(int), n - 1) for n in (len(first), len(second))]
    cost = _slices(jnp.asarray(first), jnp.asarray(second), key, num_directions, order, *places)
    return float(np.asarray(cost, float) @ width) ** (1 / order)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _slices(a: Array, b: Array, key: PRNGKey, number: int, order: int, i: Array, j: Array) -> Array:
    directions = jax.random.normal(key, (number, a.shape[1]), a.dtype)
    directions /= jnp.linalg.norm(directions, axis=1, keepdims=True)
    project = functools.partial(jnp.matmul, precision="highest")
    ours = jnp.sort(project(directions, a.T), axis=1)[:, i]
    theirs = jnp.sort(project(directions, b.T), axis=1)[:, j]
    return jnp.mean(jnp.abs(ours - theirs) ** order, axis=0)


@dataclasses.dataclass(frozen=True)
class MMD:
    r"""Kernel distance of two samples: `squared` is unbiased, so about 0 for equal laws.

    `null` holds its values after the points were exchanged at random.
    """

    squared: float
    bandwidth: float
    null: Float[np.ndarray, " exchanges"]

    @property
    def p_value(self) -> float:
        """The place of `squared` among the exchanges: exact for independent points."""
        return float((1 + np.sum(self.null >= self.squared)) / (1 + self.null.size))


def mmd(
    a: ArrayLike,
    b: ArrayLike,
    key: PRNGKey,
    *,
    bandwidth: float | None = None,
    num_permutations: int = NUM_PERMUTATIONS,
) -> MMD:
    r"""Unbiased squared maximum mean discrepancy (Gretton et al., 2012).

    $$\frac{\sum_{i \ne j} k(a_i, a_j)}{n (n - 1)} + \frac{\sum_{i \ne j} k(b_i, b_j)}{m (m - 1)}
    - \frac{2 \sum_{ij} k(a_i, b_j)}{n m}, \quad k(x, y) = e^{-|x - y|^2 / 2 s^2}$$

    with $s$ = `bandwidth`, by default the median distance of all points. Memory grows with the
    square of the number of points: some thousands are enough.

    Raises `ValueError` for fewer than two points in a sample.
    """
    first, second = _pair(a, b)
    if min(len(first), len(second)) < 2:
        raise ValueError("`mmd` needs at least 2 points in each sample.")
    pool = jnp.asarray(np.concatenate([first, second]))
    distances = _distances(pool)
    if bandwidth is None:
        every = np.sqrt(np.asarray(distances)[np.triu_indices(len(pool), 1)])
        bandwidth = float(np.median(every)) or 1.0
    ours = jnp.arange(len(pool)) < len(first)
    values = np.asarray(_mmds(distances, ours, bandwidth, key, num_permutations), float)
    return MMD(float(values[0]), bandwidth, values[1:])


@jax.jit
def _distances(points: Float[Array, "points dimensions"]) -> Float[Array, "points points"]:
    """Squared ones, by components: differences of squared norms would cancel."""
    total = jnp.zeros((len(points), len(points)), points.dtype)
    return jax.lax.fori_loop(
        0, points.shape[1], lambda d, sum: sum + (points[:, d, None] - points[:, d]) ** 2, total
    )


@functools.partial(jax.jit, static_argnums=4)
def _mmds(
    distances: Array, ours: Bool[Array, " points"], bandwidth: float, key: PRNGKey, number: int
) -> Float[Array, " number_and_1"]:
    kernel = jnp.exp(-distances / (2 * bandwidth**2)) * (1 - jnp.eye(ours.size))
    keys = jax.random.split(key, number)
    exchanged = jax.vmap(lambda key: jax.random.permutation(key, ours))(keys)
    first = jnp.concatenate([ours[None], exchanged]).astype(kernel.dtype)
    n, m = jnp.sum(ours), jnp.sum(~ours)
    product = jnp.matmul(first, kernel, precision="highest")
    within, touching = jnp.sum(product * first, axis=1), jnp.sum(product, axis=1)
    across = touching - within
    other = jnp.sum(kernel) - touching - across
    return within / (n * (n - 1)) + other / (m * (m - 1)) - 2 * across / (n * m)


def _pair(a: ArrayLike, b: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Both as matrices of finite numbers with the same columns."""
    first, second = (
        np.asarray(sample, np.float32).reshape(len(np.asarray(sample)), -1) for sample in (a, b)
    )
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"The samples have {first.shape[1]} and {second.shape[1]} dimensions; compare alike."
        )
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("A sample holds numbers that are not finite; leave these points out.")
    return first, second
