"""What a learned simulator saves: its solver's time at equal error, over its own."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

RESAMPLES = 1000
"""Bootstrap draws of courses."""


@dataclasses.dataclass(frozen=True)
class SpeedUp:
    """How much longer a solver takes for the same error; below 1 the solver is faster."""

    ratio: float
    low: float
    high: float
    """The middle of 95 % of bootstrap draws of courses."""
    bound: str
    """"": the error lies within the sweep. "at least": it is smaller than any of the solver's,
    which would take longer than its slowest setting. "at most": it is larger than any, and the
    fastest setting is still better."""

    def __str__(self) -> str:
        text = f"{self.bound} {self.ratio:.3g} ({self.low:.3g} to {self.high:.3g})"
        return text.strip()


def speed_up(
    errors: Float[np.ndarray, " courses"],
    seconds: float,
    solver_errors: Sequence[Float[np.ndarray, " courses"]],
    solver_seconds: Sequence[float],
    seed: int = 0,
) -> SpeedUp:
    r"""The solver's time at the model's error over the model's time $w$: $w^* / w$.

    **Arguments:** the errors of the model on each course and its time for all of them; the same for
    each setting of the solver, same courses, device, batch and precision. Times between settings
    are interpolated, $\log w$ linear in $\log$ mean error, along the settings that no other beats
    in both (McGreivy and Hakim, 2024, on weak baselines). Outside the sweep a bound is given, never
    an extrapolation.
    """
    random = np.random.default_rng(seed)
    table = np.stack([np.asarray(each, np.float64) for each in solver_errors])
    model, times = np.asarray(errors, np.float64), np.asarray(solver_seconds, np.float64)
    if table.shape != (times.size, model.size) or times.size < 2:
        raise ValueError(
            f"Give at least two settings, each with a time and the errors of the same "
            f"{model.size} courses; got {table.shape} errors and {times.size} times."
        )
    draws = random.integers(model.size, size=(RESAMPLES, model.size))
    ratios = [_at(model[d].mean(), table[:, d].mean(axis=1), times)[0] / seconds for d in draws]
    middle, bound = _at(model.mean(), table.mean(axis=1), times)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return SpeedUp(float(middle / seconds), float(low), float(high), bound)


def _at(error: float, errors: np.ndarray, times: np.ndarray) -> tuple[float, str]:
    """The time at which the frontier of settings reaches an error."""
    order = np.argsort(times)
    kept: list[int] = []
    for index in order:
        if not kept or errors[index] < errors[kept[-1]]:
            kept.append(int(index))
    best, taken = errors[kept], times[kept]
    if error <= best[-1]:
        return float(taken[-1]), "at least"
    if error >= best[0]:
        return float(taken[0]), "at most"
    smallest = np.finfo(np.float64).tiny
    logs = np.log(np.maximum(best, smallest))
    return float(np.exp(np.interp(np.log(error), logs[::-1], np.log(taken)[::-1]))), ""
