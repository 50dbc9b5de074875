r"""A classifier between real and simulated series: a lower limit of their total variation.

With equal weights of both kinds the accuracy $a$ of any classifier on series that it was not
trained on satisfies $2 E[a] - 1 \le TV$, with equality for the Bayes classifier. So a limit below
$a$ is a limit below the total variation (Lopez-Paz and Oquab, 2017; Hoeffding, 1963). Nothing of
the kind bounds it from above.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from sgjax._types import PRNGKey

WIDTH, STEPS, LEARNING_RATE, WEIGHT_DECAY = 64, 200, 3e-3, 0.1

Weights = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class TotalVariation:
    r"""What a classifier says of $TV = \sup_A |P(A) - Q(A)|$ between real and simulated series.

    It holds for the law of the series in one space, and so for the joint law of series and target,
    whose total variation is never smaller.
    """

    space: str
    accuracy: float
    """On held-out series, real and simulated ones having equal weight."""
    num_real: int
    """Held-out real series."""
    num_simulated: int
    """Held-out simulated series."""
    delta: float = 0.05

    @property
    def estimate(self) -> float:
        """$2a - 1$: of a lower bound, with the noise of few series; below 0 by chance only."""
        return 2 * self.accuracy - 1

    @property
    def lower_limit(self) -> float:
        r"""Below the total variation with probability $1 - \delta$ at least; 0 says nothing.

        $$\max\left(0,\; 2a - 1 -
        \sqrt{\tfrac12 \ln\tfrac1\delta \left(\tfrac1n + \tfrac1m\right)}\right)$$

        for $n$ real and $m$ simulated held-out series; where they are equally many, $N = 2n$, this
        is $2 (a - \sqrt{\ln(1/\delta) / 2N}) - 1$.
        """
        return max(0.0, self.estimate - half_width(self.num_real, self.num_simulated, self.delta))


def half_width(num_real: int, num_simulated: int, delta: float = 0.05) -> float:
    """By how much the lower limit stays below the estimate."""
    return float(np.sqrt(np.log(1 / delta) / 2 * (1 / num_real + 1 / num_simulated)))


def series_needed(total_variation: float, delta: float = 0.05) -> int:
    r"""How many real series a perfect classifier needs before its lower limit exceeds 0.

    Twice $\ln(1/\delta) / (2 TV^2)$, since half of them train it.
    """
    return 2 * int(np.ceil(np.log(1 / delta) / (2 * total_variation**2)))


@jax.jit
def log_odds(
    key: PRNGKey,
    points: Float[Array, "points size"],
    is_real: Bool[Array, " points"],
    asked: Float[Array, "asked size"],
) -> Float[Array, " asked"]:
    """The log odds that a point is real, after training on labelled ones, kinds weighted alike.

    A network of two hidden layers, trained on all points at once by AdamW.
    """
    shift, scale = points.mean(0), points.std(0)
    scale = jnp.where(scale > 1e-6, scale, 1.0)
    scaled = lambda values: jnp.clip((values - shift) / scale, -10, 10)
    labels = is_real.astype(points.dtype)
    weights = jnp.where(is_real, 0.5 / jnp.sum(labels), 0.5 / jnp.sum(1 - labels))

    def loss(network: Weights) -> Array:
        answers = _forward(network, scaled(points))
        return jnp.sum(weights * optax.sigmoid_binary_cross_entropy(answers, labels))

    optimiser = optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    def step(_: Int[Array, ""], state: tuple) -> tuple:
        network, moments = state
        updates, moments = optimiser.update(jax.grad(loss)(network), moments, network)
        return optax.apply_updates(network, updates), moments

    network = _blank(key, points.shape[1])
    network, _ = jax.lax.fori_loop(0, STEPS, step, (network, optimiser.init(network)))
    return _forward(network, scaled(asked))


def accuracy(real: Float[ArrayLike, " real"], simulated: Float[ArrayLike, " simulated"]) -> float:
    """Of log odds, kinds weighted alike; one that cannot decide is right half the time."""
    right = lambda odds: float(np.mean((odds > 0) + 0.5 * (odds == 0)))
    return (right(np.asarray(real)) + right(-np.asarray(simulated))) / 2


def _blank(key: PRNGKey, size: int) -> Weights:
    keys = jax.random.split(key, 3)
    shapes = [(size, WIDTH), (WIDTH, WIDTH), (WIDTH, 1)]
    make = lambda key, shape: jax.random.normal(key, shape) * np.sqrt(1 / shape[0])
    weights = {f"w{i}": make(keys[i], shape) for i, shape in enumerate(shapes)}
    return weights | {f"b{i}": jnp.zeros(shape[1]) for i, shape in enumerate(shapes)}


def _forward(network: Weights, points: Array) -> Float[Array, " points"]:
    product = functools.partial(jnp.matmul, precision="highest")
    for layer in range(2):
        points = jax.nn.relu(product(points, network[f"w{layer}"]) + network[f"b{layer}"])
    return (product(points, network["w2"]) + network["b2"])[:, 0]
