"""Lynx and hare pelts of the Hudson's Bay Company, 1900-1920."""

import numpyro.distributions as dist

from sgjax.observations import LogNormal
from sgjax.simulators import LotkaVolterra
from sgjax.solvers import FixedSteps
from sgjax.study import Study
from sgjax.tasks import Estimate


def lynx_hare() -> Study:
    """Hares (prey) and lynx (predators) in thousands of pelts, 21 yearly returns.

    The classic Lotka-Volterra model with multiplicative log-normal errors, one sd per species, and
    both initial states unknown; the first year is observed too. Priors as in Stan's case study of
    these data (Carpenter, 2018): growth and death rates ~ Normal(1, 0.5), interaction rates
    ~ Normal(0.05, 0.05), all positive; sds ~ LogNormal(-1, 1), initial states ~ LogNormal(log 10,
    1).
    """
    rate = dist.TruncatedNormal(1.0, 0.5, low=0.0)
    interaction = dist.TruncatedNormal(0.05, 0.05, low=0.0)
    initial = dist.LogNormal(2.302585, 1.0)
    return Study(
        simulator=LotkaVolterra(
            prior={
                "alpha": rate,
                "beta": interaction,
                "gamma": rate,
                "delta": interaction,
                "initial_prey": initial,
                "initial_predator": initial,
            },
            ts=range(21),
            solver=FixedSteps(num_substeps=32),
        ),
        observation=LogNormal(
            prior={"log_sd": dist.LogNormal(-1.0, 1.0).expand((2,)).to_event(1)},
        ),
        task=Estimate(),
        name="lynx_hare",
    )
