r"""Measures of a rollout: arrays in, arrays out; `predicted, truth: (courses, steps, channels)`.

The frame that both start from is in neither. A prediction that is not finite counts as infinitely
wrong, never as missing.
"""

import numpy as np
from jaxtyping import Float

Courses = Float[np.ndarray, "courses steps channels"]

VARIANCE_FLOOR = 1e-7
"""Added to a variance that an error is divided by (Ohana et al., 2024)."""


def relative_error(predicted: Courses, truth: Courses) -> Float[np.ndarray, "courses steps"]:
    r"""$e_t = \|v_t - u_t\| / \|u_t\|$, the norm over channels. It flatters a mean far from 0."""
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        sizes = np.linalg.norm(truth, axis=-1)
        return _wrong(np.linalg.norm(predicted - truth, axis=-1) / sizes)


def vrmse(predicted: Courses, truth: Courses) -> Float[np.ndarray, "courses steps"]:
    r"""$\sqrt{\langle (v - u)^2 \rangle / (\operatorname{Var} u + 10^{-7})}$ over channels.

    For fields, whose channels are points: 1 is the error of the mean (Ohana et al., 2024).
    """
    with np.errstate(invalid="ignore", over="ignore"):
        squares = np.mean((predicted - truth) ** 2, axis=-1)
        return _wrong(np.sqrt(squares / (truth.var(axis=-1) + VARIANCE_FLOOR)))


def scaled_error(
    predicted: Courses, truth: Courses, sd: Float[np.ndarray, " channels"]
) -> Float[np.ndarray, "courses steps"]:
    r"""$\sqrt{\langle ((v_d - u_d) / \sigma_d)^2 \rangle_d}$ in deviations of each channel."""
    with np.errstate(invalid="ignore", over="ignore"):
        return _wrong(np.sqrt(np.mean(((predicted - truth) / sd) ** 2, axis=-1)))


def correlation(predicted: Courses, truth: Courses) -> Float[np.ndarray, "courses steps"]:
    """Pearson's, centred, over channels; -1 where a prediction is not finite, 0 where constant."""
    with np.errstate(invalid="ignore", over="ignore"):
        v = predicted - predicted.mean(axis=-1, keepdims=True)
        u = truth - truth.mean(axis=-1, keepdims=True)
        # Each by its own length first, so that no product leaves the range of numbers.
        v, u = (_unit(each) for each in (v, u))
        found = np.sum(v * u, axis=-1)
    return np.where(np.isfinite(predicted).all(axis=-1), found, -1.0)


def first_time(passed: np.ndarray, dt: float) -> np.ndarray:
    """When something first holds along the last axis; the end of it where it never does.

    Step `j` (from 0) is at time `(j + 1) dt`, and what holds from the first step on lasted 0.
    """
    steps = np.where(passed.any(axis=-1), passed.argmax(axis=-1), passed.shape[-1])
    return np.asarray(dt * steps)


def valid_time(
    predicted: Courses, truth: Courses, sd: Float[np.ndarray, " channels"], dt: float,
    threshold: float = 0.4,
) -> Float[np.ndarray, " courses"]:  # fmt: skip
    """How long `scaled_error` stays at or below `threshold`; the whole rollout where it ever is."""
    return first_time(scaled_error(predicted, truth, sd) > threshold, dt)


def correlation_time(predicted: Courses, truth: Courses, dt: float, level: float = 0.8) -> float:
    """How long the mean `correlation` over courses stays at or above `level`."""
    return float(first_time(correlation(predicted, truth).mean(axis=0) < level, dt))


def survival(
    predicted: Courses, mean: Float[np.ndarray, " channels"], sd: Float[np.ndarray, " channels"]
) -> float:
    """The share of rollouts that stay finite and within 10 deviations of the mean."""
    with np.errstate(invalid="ignore", over="ignore"):
        inside = np.abs(predicted - mean) <= 10 * sd
    return float(np.mean(inside.all(axis=(1, 2))))


def spectrum(courses: Courses) -> Float[np.ndarray, " wavenumbers"]:
    """The mean energy of each wavenumber of fields on a ring; the mean of the field left out."""
    size = courses.shape[-1]
    energy = np.abs(np.fft.rfft(courses, axis=-1) / size) ** 2
    return energy.reshape(-1, energy.shape[-1]).mean(axis=0)[1:]


def spectrum_distance(predicted: Courses, truth: Courses) -> float:
    r"""$\sqrt{\langle (\log_{10} E_v - \log_{10} E_u)^2 \rangle_k}$, $k$ up to 2/3 of its range."""
    finite = np.isfinite(predicted).all(axis=(1, 2))
    if not finite.any():
        return np.inf
    kept = max(1, int(2 / 3 * (truth.shape[-1] // 2)))
    v, u = (spectrum(each)[:kept] for each in (predicted[finite], truth))
    smallest = np.finfo(np.float64).tiny
    return float(np.sqrt(np.mean((np.log10(v + smallest) - np.log10(u + smallest)) ** 2)))


def histogram_distance(
    predicted: Courses, truth: Courses, sd: Float[np.ndarray, " channels"]
) -> float:
    """Wasserstein-1 between all values of the two, in deviations, the mean over channels.

    What is not finite, or farther out than 10 deviations of the truth's mean, counts as there.
    """
    from scipy.stats import wasserstein_distance

    mean = truth.mean(axis=(0, 1))
    bounded = np.clip(np.nan_to_num(predicted, nan=np.inf, posinf=np.inf, neginf=-np.inf),
                      mean - 10 * sd, mean + 10 * sd)  # fmt: skip
    apart = [
        wasserstein_distance(bounded[..., channel].ravel(), truth[..., channel].ravel()) / each
        for channel, each in enumerate(sd)
    ]
    return float(np.mean(apart))


def geometric_mean(errors: Float[np.ndarray, "courses steps"], steps: int = 100) -> float:
    """Of the mean error at each of the first steps (Koehler et al., 2024)."""
    with np.errstate(divide="ignore"):
        return float(np.exp(np.mean(np.log(errors.mean(axis=0)[:steps]))))


def drift(invariant: Float[np.ndarray, "courses frames"]) -> Float[np.ndarray, " courses"]:
    r"""$\max_t |H_t - H_0| / |H_0|$; the first frame is the true one."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        return _wrong(np.max(np.abs(invariant - invariant[:, :1]), 1) / np.abs(invariant[:, 0]))


def _wrong(errors: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(errors), np.inf, errors)


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = rows / np.maximum(np.abs(rows).max(axis=-1, keepdims=True), np.finfo(float).tiny)
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), np.finfo(float).tiny)
