"""What to say where too many simulations are not finite."""

import numpy as np

from sgjax.devices import jit
from sgjax.stream import SimulationStream


def explain_invalid(stream: SimulationStream, step: int, valid_share: float) -> str:
    """Which parameters set the invalid simulations apart: the largest shifts in median, in sds."""
    batch = jit(lambda: stream.batch(step))()
    bad = ~np.asarray(batch.valid)
    shifts = {}
    for name, values in batch.theta.items():
        numbers = np.asarray(values, np.float64).reshape(bad.size, -1).mean(axis=1)
        if bad.any() and not bad.all() and np.isfinite(numbers).all():
            gap = np.median(numbers[bad]) - np.median(numbers[~bad])
            shifts[name] = gap / max(numbers.std(), 1e-30)
    worst = sorted(shifts, key=lambda name: -abs(shifts[name]))[:3]
    share = f"Only {valid_share:.1%} of the simulations up to step {step} are finite."
    if not worst:
        return f"{share} Every parameter is affected; check the equations and `num_substeps`."
    causes = ", ".join(
        f"{'large' if shifts[name] > 0 else 'small'} {name} ({shifts[name]:+.1f} sd)"
        for name in worst
    )
    return f"{share} They go with {causes}: narrow those priors or raise `num_substeps`."
