"""The worlds of the claims: epidemics seen as daily new cases, and growth towards a capacity."""

from typing import Literal

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float

import sgjax as sg
from sgjax._types import Prior, Theta, Times, as_times
from sgjax.simulators import SEIR, SIR, AbstractSimulator, Latent, MechanismMixture
from sgjax.simulators.seir import SEIRState
from sgjax.simulators.sir import SIRState
from sgjax.solvers import FixedSteps

Seeding = Literal["on the growing direction", "none exposed"]
"""How many are exposed at the start of SEIR: as many as in the epidemic's own growth, so that the
start tells nothing, or none, so that the first days give the latent period away."""

POPULATION = 1e5


class Cases(SIR):
    """SIR whose channel is the number newly infected since the time before."""

    channels = ("cases",)

    def readout(self, trajectory, theta):
        return new_ones(trajectory, self.initial_state(theta))


class LatentCases(SEIR):
    """SEIR whose channel is the number that became infectious since the time before."""

    seeding: Seeding = "none exposed"
    channels = ("cases",)

    def initial_state(self, theta):
        infectious = self.quantity(theta, "initial_infectious")
        exposed = jnp.zeros(())
        if self.seeding == "on the growing direction":
            exposed = infectious * (growth_rate(theta) + theta["gamma"]) / theta["sigma"]
        susceptible = self.quantity(theta, "population") - infectious - exposed
        return SEIRState(susceptible, exposed, infectious, jnp.zeros(()))

    def readout(self, trajectory, theta):
        return new_ones(trajectory, self.initial_state(theta))


def new_ones(trajectory, start) -> Float[Array, "times 1"]:
    """How many became infectious since the time before.

    By who is or was: what leaves the susceptible is the same, but a few of a hundred thousand are
    lost to rounding there, and a likelihood of small counts becomes rough.
    """
    been = trajectory.I + trajectory.R
    return jnp.diff(been, prepend=start.I + start.R)[:, None]


def growth_rate(theta: Theta) -> Float[Array, ""]:
    r"""The positive root r of $(r + \sigma)(r + \gamma) = \beta \sigma$, or the larger one."""
    sigma, gamma, beta = theta["sigma"], theta["gamma"], theta["beta"]
    return (jnp.sqrt((sigma - gamma) ** 2 + 4 * beta * sigma) - sigma - gamma) / 2


def latent_or_not(days: int, overdispersion: float, seeding: Seeding) -> sg.Study:
    """SIR or SEIR, equally probable: negative-binomial counts of new cases, day by day."""
    rates = {
        "beta": dist.Uniform(0.2, 0.6),
        "gamma": dist.Uniform(0.1, 0.3),
        "initial_infectious": dist.LogUniform(5.0, 50.0),
    }
    latent = {"sigma": dist.Uniform(0.15, 0.6)}
    world = {"population": POPULATION, "ts": range(1, days + 1), "solver": FixedSteps(4)}
    return sg.Study(
        MechanismMixture(
            {
                "SIR": Cases(prior=rates, **world),
                "SEIR": LatentCases(prior=rates | latent, seeding=seeding, **world),
            },
            table_size=2,
        ),
        sg.observations.NegativeBinomial(overdispersion=overdispersion, prior={}),
        sg.tasks.Identify(),
        name="latent_or_not",
    )


GROWTH_SD = 0.1


class LogGrowth(AbstractSimulator):
    r"""The logarithm of logistic growth, in closed form.

    $$\ln N(t) = \ln K - \ln(1 + e^{q - r t}), \quad q = \ln(K / N_0 - 1)$$

    Parameters are $r$, $\ln K$ and $\ln N_0$; the channel is $\ln N$.
    """

    prior: Prior = eqx.field(
        default_factory=lambda: {
            "growth_rate": dist.Uniform(0.2, 0.6),
            "log_capacity": dist.Uniform(float(np.log(50.0)), float(np.log(2e4))),
            "log_initial": dist.Uniform(float(np.log(2.0)), float(np.log(20.0))),
        }
    )
    ts: Times = eqx.field(converter=as_times, default_factory=lambda: range(20))

    channels = ("log_size",)

    def simulate(self, key, theta):
        ratio = theta["log_initial"] - theta["log_capacity"]
        # Beyond the capacity a population shrinks, which bounds that are wide allow: no logarithm.
        decay = jnp.exp(-ratio) - 1
        fullness = 1 + decay * jnp.exp(-theta["growth_rate"] * jnp.asarray(self.ts, ratio.dtype))
        values = theta["log_capacity"] - jnp.log(fullness)
        return Latent(jnp.asarray(self.ts, values.dtype), values[:, None], None)


class LogGompertz(LogGrowth):
    r"""That of Gompertz growth, $\ln N(t) = \ln K + (\ln N_0 - \ln K) e^{-r t}$."""

    def simulate(self, key, theta):
        ratio = theta["log_initial"] - theta["log_capacity"]
        decay = jnp.exp(-theta["growth_rate"] * jnp.asarray(self.ts, ratio.dtype))
        values = theta["log_capacity"] + ratio * decay
        return Latent(jnp.asarray(self.ts, values.dtype), values[:, None], None)


def two_laws() -> sg.Study:
    """Logistic or Gompertz growth, equally probable, in closed form: few seconds to compile."""
    slow = {"growth_rate": dist.Uniform(0.07, 0.21)}
    laws = {"logistic": LogGrowth(), "Gompertz": LogGompertz(prior=dict(LogGrowth().prior) | slow)}
    return sg.Study(
        MechanismMixture(laws, table_size=2),
        sg.observations.Gaussian(sd=GROWTH_SD, prior={}),
        sg.tasks.Identify(),
        name="two_laws",
    )


def growth() -> sg.Study:
    """Logistic growth with multiplicative errors of a tenth, 20 times."""
    return sg.Study(
        LogGrowth(), sg.observations.Gaussian(sd=GROWTH_SD, prior={}), sg.Estimate(), name="growth"
    )


def inflection(theta: Theta) -> Float[np.ndarray, " series"]:
    r"""When growth is steepest, $t^* = \ln(K / N_0 - 1) / r$."""
    ratio = np.asarray(theta["log_capacity"], float) - np.asarray(theta["log_initial"], float)
    return np.log(np.expm1(ratio)) / np.asarray(theta["growth_rate"], float)


class ReportedCases(SIR):
    r"""SIR of shares of a population, of whose new cases a share $\rho$ is reported.

    The channel is $\rho N$ times the share newly infected: it depends on both only by their
    product $m$. The prior names `inhabitants` $N$, or `reported_population` $m$, so that
    $N = m / \rho$.
    """

    population: float = 1.0
    channels = ("reported_cases",)

    def initial_state(self, theta):
        share = theta["initial_share"]
        return SIRState(1 - share, share, jnp.zeros(()))

    def inhabitants(self, theta: Theta) -> Array:
        """How many there are."""
        if "inhabitants" in self.prior:
            return theta["inhabitants"]
        return theta["reported_population"] / theta["reporting_rate"]

    def readout(self, trajectory, theta):
        new = new_ones(trajectory, self.initial_state(theta))
        return theta["reporting_rate"] * self.inhabitants(theta) * new


def reported(*, leaky: bool, days: int = 40) -> sg.Study:
    """Reported cases of SIR, of which the reporting rate cannot be told from the population.

    With m and the rate drawn independently the data hold nothing of the rate. The `leaky` twin
    draws N instead, so that the ends of the priors give some of it away.
    """
    scale = (
        {"inhabitants": dist.LogUniform(1e4, 1e6)}
        if leaky
        else {"reported_population": dist.LogUniform(1e3, 1e6)}
    )
    prior = {
        "beta": dist.Uniform(0.2, 0.6),
        "gamma": dist.Uniform(0.1, 0.3),
        "initial_share": dist.LogUniform(5e-5, 5e-4),
        **scale,
        "reporting_rate": dist.Uniform(0.1, 0.9),
    }

    def log_reported(theta: Theta) -> Array:
        if leaky:
            return jnp.log(theta["inhabitants"] * theta["reporting_rate"])
        return jnp.log(theta["reported_population"])

    return sg.Study(
        ReportedCases(prior=prior, ts=range(1, days + 1), solver=FixedSteps(4)),
        sg.observations.NegativeBinomial(overdispersion=0.05, prior={}),
        sg.Estimate(
            derived={
                "log rho": lambda theta: jnp.log(theta["reporting_rate"]),
                "log m": log_reported,
                "beta - gamma": lambda theta: theta["beta"] - theta["gamma"],
            }
        ),
        name="reported_leaky" if leaky else "reported",
    )


def growth_laws() -> sg.Study:
    """Logistic, Gompertz or Richards growth, equally probable: 40 values with log-normal errors.

    Gompertz slows down from the start, so that its rates are about a third of the logistic ones.
    """
    ends = {
        "carrying_capacity": dist.LogUniform(50.0, 2e4),
        "initial_size": dist.LogUniform(2.0, 20.0),
    }
    rate = {"growth_rate": dist.Uniform(0.2, 0.6)}
    slow = {"growth_rate": dist.Uniform(0.07, 0.21)}
    shape = {"exponent": dist.LogNormal(0.0, 0.7)}
    ts = range(40)
    return sg.Study(
        MechanismMixture(
            {
                "logistic": sg.simulators.Logistic(prior=rate | ends, ts=ts),
                "Gompertz": sg.simulators.Gompertz(prior=slow | ends, ts=ts),
                "Richards": sg.simulators.Richards(prior=rate | ends | shape, ts=ts),
            },
            table_size=3,
        ),
        sg.observations.LogNormal(log_sd=0.1, prior={}),
        sg.tasks.Identify(),
        name="growth_laws",
    )


def hungry_or_sated() -> sg.Study:
    """Lotka-Volterra or Rosenzweig-MacArthur, equally probable: 21 years of both, in thousands.

    Priors as in Stan's case study of hare and lynx (Carpenter, 2018); those of the second have the
    same rates for few prey, and what sets it apart: a handling time and a carrying capacity.
    """
    starts = {
        "initial_prey": dist.LogNormal(3.5, 0.3),
        "initial_predator": dist.LogNormal(1.8, 0.3),
    }
    hungry = {
        "alpha": dist.LogNormal(-0.6, 0.3),
        "beta": dist.LogNormal(-3.5, 0.3),
        "gamma": dist.LogNormal(-0.2, 0.3),
        "delta": dist.LogNormal(-3.7, 0.3),
    }
    sated = {
        "growth_rate": dist.LogNormal(-0.6, 0.3),
        "carrying_capacity": dist.LogUniform(50.0, 500.0),
        "attack_rate": dist.LogNormal(-3.5, 0.3),
        "handling_time": dist.Uniform(0.05, 0.5),
        "conversion": dist.LogNormal(-0.2, 0.3),
        "mortality": dist.LogNormal(-0.2, 0.3),
    }
    world = {"ts": range(21), "solver": FixedSteps(8)}
    return sg.Study(
        MechanismMixture(
            {
                "Lotka-Volterra": sg.simulators.LotkaVolterra(prior=hungry | starts, **world),
                "Rosenzweig-MacArthur": sg.simulators.RosenzweigMacArthur(
                    prior=sated | starts, **world
                ),
            },
            table_size=2,
        ),
        sg.observations.LogNormal(log_sd=0.2, prior={}),
        sg.tasks.Identify(),
        name="hungry_or_sated",
    )


def early_outbreak(days: int) -> sg.Study:
    """R0 from the first days of an epidemic, of SIR or SEIR, of which a share is reported."""
    world = latent_or_not(days, 0.05, "on the growing direction")
    return sg.Study(
        world.simulator,
        sg.observations.Chain(
            sg.observations.UnderReporting(prior={"reporting_rate": dist.Uniform(0.1, 0.9)}),
            world.observation,
        ),
        sg.Several(
            sg.Estimate(derived={"R0": lambda theta: theta["beta"] / theta["gamma"]}),
            sg.tasks.Identify(),
        ),
        name=f"early_{days}",
    )


def exposed(days: int = 25) -> sg.Study:
    """The number exposed on the last day, whom no one counts, from the cases so far."""
    mechanism = latent_or_not(days, 0.05, "on the growing direction").mechanisms["SEIR"]
    return sg.Study(
        mechanism,
        sg.observations.NegativeBinomial(overdispersion=0.05, prior={}),
        sg.Estimate(latent={"log exposed": lambda theta, latent: jnp.log(latent.states.E[-1])}),
        name="exposed",
    )
