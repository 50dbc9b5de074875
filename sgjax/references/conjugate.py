"""Posteriors in closed form: `(design, values, noise, prior) -> normal distribution, evidence`."""

import dataclasses

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float


@dataclasses.dataclass(frozen=True)
class NormalPosterior:
    """A normal distribution over unknown coefficients, and the log evidence of the data."""

    mean: Float[np.ndarray, " size"]
    covariance: Float[np.ndarray, "size size"]
    log_evidence: float

    @property
    def sd(self) -> Float[np.ndarray, " size"]:
        """The marginal standard deviations."""
        return np.sqrt(np.diagonal(self.covariance))


def linear_gaussian_posterior(
    design: ArrayLike,
    values: ArrayLike,
    noise_sd: ArrayLike,
    prior_mean: ArrayLike,
    prior_covariance: ArrayLike,
) -> NormalPosterior:
    r"""The posterior of $c \sim \mathcal N(m, V)$ given $y = X c + \varepsilon$ of known variance.

    $$C = (V^{-1} + X^\top \Sigma^{-1} X)^{-1}, \quad
    \mu = C (V^{-1} m + X^\top \Sigma^{-1} y), \quad y \sim \mathcal N(X m, X V X^\top + \Sigma)$$

    with $X$ = `design` (values x size), $\Sigma$ diagonal of `noise_sd` squared, one number or one
    per value. A design of ones is a mean observed repeatedly. In float64. Source: Lindley and Smith
    (1972).

    Raises `ValueError` where the shapes do not match or a standard deviation is not positive.
    """
    x, y = np.asarray(design, float), np.asarray(values, float)
    m, v = np.asarray(prior_mean, float), np.asarray(prior_covariance, float)
    if x.shape != (y.size, m.size) or v.shape != (m.size, m.size):
        raise ValueError(
            f"{y.size} values and {m.size} coefficients need a design of {(y.size, m.size)} and a "
            f"covariance of {(m.size, m.size)}; got {x.shape} and {v.shape}."
        )
    noise = np.broadcast_to(np.asarray(noise_sd, float), y.shape)
    if not np.all(noise > 0):
        raise ValueError("Every `noise_sd` must be positive.")
    precision, scaled = np.linalg.inv(v), x / noise[:, None]
    covariance = np.linalg.inv(precision + scaled.T @ scaled)
    mean = covariance @ (precision @ m + scaled.T @ (y / noise))
    marginal, gap = x @ v @ x.T + np.diag(noise**2), y - x @ m
    log_determinant = np.linalg.slogdet(2 * np.pi * marginal)[1]
    evidence = -0.5 * (log_determinant + gap @ np.linalg.solve(marginal, gap))
    return NormalPosterior(mean, covariance, float(evidence))
