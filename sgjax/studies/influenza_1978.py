"""Influenza in an English boarding school, January-February 1978: SIR or SEIR?"""

import numpyro.distributions as dist

from sgjax.observations import NegativeBinomial
from sgjax.simulators import SEIR, SIR, MechanismMixture
from sgjax.solvers import FixedSteps
from sgjax.study import Study
from sgjax.tasks import Estimate, Identify, Several


def influenza_1978(sigma: dist.Distribution | None = None) -> Study:
    """763 boys, one infectious on day 0, nobody exposed; the number in bed on days 1 to 14.

    SIR and SEIR are equally probable before the data. Priors as in Stan's case study of this
    outbreak (Grinsztajn et al., 2021): beta ~ Normal(2, 1) and gamma ~ Normal(0.4, 0.5), both
    positive, overdispersion 1/phi ~ Exponential(5); sigma ~ LogNormal(0, 0.5) per day unless
    another prior is given. gamma has density at 0, so the prior means of R0 and of the infectious
    period are infinite: quantiles before moments.
    """
    rates = {
        "beta": dist.TruncatedNormal(2.0, 1.0, low=0.0),
        "gamma": dist.TruncatedNormal(0.4, 0.5, low=0.0),
    }
    latent = {"sigma": dist.LogNormal(0.0, 0.5) if sigma is None else sigma}
    world = {"population": 763.0, "ts": range(1, 15), "solver": FixedSteps(num_substeps=4)}
    return Study(
        simulator=MechanismMixture(
            {"SIR": SIR(prior=rates, **world), "SEIR": SEIR(prior=rates | latent, **world)},
            table_size=2,
        ),
        observation=NegativeBinomial(),
        task=Several(
            Estimate(
                derived={
                    "R0": lambda theta: theta["beta"] / theta["gamma"],
                    "infectious_period": lambda theta: 1 / theta["gamma"],
                }
            ),
            Identify(),
        ),
        name="influenza_1978",
    )
