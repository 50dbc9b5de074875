r"""Where simulations are near each other: `raw coordinates -> points`, distances Euclidean.

The space decides what attribution means. Neighbours in a space follow $p(\theta \mid h(x))$ as
their number grows (Stone, 1977), which is the posterior where the coordinates $h$ are sufficient
for it: features of a network trained by a density or class score are, at its optimum, for what it
was trained on; a predictive mean alone in general is not; the inputs are, but need far more
simulations, since the rate falls with the dimension of $h$.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from sgjax.predictors import (
    AbstractNetwork,
    AbstractPredictive,
    ByMechanism,
    CannotGive,
    Categorical,
)
from sgjax.tasks import Inputs

SPACES = ("features", "predictive", "inputs")
SCALINGS = ("sd", "whitened")

RIDGE = 1e-3
"""Added to each eigenvalue of the correlation, whose mean is 1: directions that hardly vary are
not blown up to the size of the others."""


class Space(eqx.Module):
    r"""Coordinates of one kind with the scale that makes them comparable.

    **Kinds:** `"features"`, what the encoder hands to the heads; `"predictive"`, the numbers of the
    predictive distributions on the learned scale: of every block but forecasts the mean (within
    each mechanism; the median of a head that has quantiles only), and the logarithm of each
    mechanism's probability; `"inputs"`, the series as scaled for the network, its missing values 0,
    and the known quantities.

    **Scalings:** `"sd"` divides each coordinate by its standard deviation over simulations;
    `"whitened"` makes the coordinates uncorrelated too, $z = (C + \rho I)^{-1/2} D^{-1} (h - m)$
    with correlation $C$, sds $D$ and a ridge $\rho$, so that $z$ is the Mahalanobis distance.
    """

    kind: str = eqx.field(static=True)
    scaling: str = eqx.field(static=True)
    centre: Float[Array, " size"]
    scale: Float[Array, " size"]
    rotation: Float[Array, "size size"] | None
    largest: Float[Array, " size"]
    """The largest absolute value of each coordinate of a point, among the first simulations."""

    @property
    def size(self) -> int:
        """How many coordinates."""
        return self.centre.size

    def points(self, raw: Float[Array, "batch size"]) -> Float[Array, "batch size"]:
        """Points from raw coordinates."""
        points = (raw - self.centre) / self.scale
        if self.rotation is not None:
            points = jnp.matmul(points, self.rotation, precision="highest")
        return points


def check_space(kind: str, scaling: str) -> None:
    """Raises `ValueError` for names that are none."""
    if kind not in SPACES:
        raise ValueError(f"There is no space {kind!r}; choose one of {list(SPACES)}.")
    if scaling not in SCALINGS:
        raise ValueError(f"There is no scaling {scaling!r}; choose one of {list(SCALINGS)}.")


def coordinates(
    kind: str,
    network: AbstractNetwork,
    inputs: Inputs,
    features: Float[Array, " features"],
    blocks: dict[str, AbstractPredictive],
) -> Float[Array, " size"]:
    """The raw coordinates of one series, from what the network says of it."""
    if kind == "features":
        return features
    if kind == "inputs":
        scaled = network.scaling(inputs)
        return jnp.concatenate([scaled.views.ravel(), scaled.known])
    numbers = [_numbers(blocks[name]) for name in blocks if name != "forecast"]
    if not numbers:
        raise ValueError(
            "space='predictive' needs a block other than the forecast; choose space='features'."
        )
    return jnp.concatenate(numbers)


def measure(
    kind: str,
    scaling: str,
    raw: Float[np.ndarray, "batch size"],
    valid: Bool[np.ndarray, " batch"],
) -> Space:
    """The scale of a space, from the raw coordinates of simulations of which `valid` count."""
    if not valid.any():
        raise ValueError(
            "None of the first simulations is finite, so there is nothing to search; check the "
            "equations and priors."
        )
    known = np.asarray(raw, np.float64)[valid]
    centre, sd = known.mean(axis=0), known.std(axis=0)
    scale = np.where(sd > 1e-6 * sd.max(), sd, 1.0)
    points, rotation = (known - centre) / scale, None
    if scaling == "whitened":
        values, vectors = np.linalg.eigh(points.T @ points / len(points))
        rotation = vectors * (np.maximum(values, 0) + RIDGE) ** -0.5
        points = points @ rotation
    largest = np.maximum(np.abs(points).max(axis=0), 1e-6)
    as_array = lambda values: jnp.asarray(values, jnp.float32)
    return Space(
        kind,
        scaling,
        as_array(centre),
        as_array(scale),
        None if rotation is None else as_array(rotation),
        as_array(largest),
    )


def _numbers(predictive: AbstractPredictive) -> Array:
    if isinstance(predictive, ByMechanism):
        return jax.vmap(_numbers)(predictive.inner).ravel()
    if isinstance(predictive, Categorical):
        return jax.nn.log_softmax(predictive.logits)
    try:
        return predictive.mean()
    except CannotGive:
        return predictive.quantile([0.5])[0]
