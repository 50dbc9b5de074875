"""The study of the README, which the benchmarks of training share."""

import jax

import sgjax as sg
from sgjax.solvers import FixedSteps, Steps

DEFAULT = FixedSteps(num_substeps=4)


def readme_sir(solver: Steps = DEFAULT) -> sg.simulators.SIR:
    """SIR among 763 persons, on 14 days."""
    return sg.simulators.SIR(population=763, ts=range(1, 15), solver=solver)


def readme_study(solver: Steps = DEFAULT) -> sg.Study:
    """Counts of the infectious, two rates to estimate."""
    return sg.Study(
        simulator=readme_sir(solver),
        observation=sg.observations.NegativeBinomial(),
        task=sg.Estimate("beta", "gamma", derived={"R0": lambda t: t["beta"] / t["gamma"]}),
    )


def predictor_and_stream(
    batch_size: int, seed: int = 0, width: int = 256
) -> tuple[sg.predictors.Predictor, sg.SimulationStream]:
    """The default predictor of the study, or a narrower one, and its endless simulations."""
    study = readme_study()
    stream = sg.SimulationStream(study, key=jax.random.key(seed), batch_size=batch_size)
    return sg.predictors.for_study(study, key=jax.random.key(seed + 1), width=width), stream
