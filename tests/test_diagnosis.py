"""`diagnose` on networks that hold exact posteriors, wrong ones, the prior, quantiles, points."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from worlds import Constant

import sgjax as sg
from sgjax.diagnostics.diagnosis import BY_DATA, DENSITY, FIXED, LIKELIHOOD
from sgjax.predictors import ByMechanism, Categorical, Gaussian, Point
from sgjax.predictors.quantile import LEVELS, Quantiles

KEY = jax.random.key(1)
CENTRES = {"low": 0.0, "high": 2.0}
"""By mechanism, the prior mean of the level."""


class Level(sg.simulators.AbstractSimulator):
    """A level that never changes, with a prior of its own."""

    prior: dict
    ts = np.arange(1.0, 9.0)
    channels = ("level",)

    def simulate(self, key, theta):
        values = jnp.broadcast_to(theta["level"], (8, 1))
        return sg.simulators.Latent(jnp.asarray(self.ts, jnp.float32), values, None)


class Exact(sg.predictors.Network):
    """Conjugate posteriors of both mechanisms and their probabilities; or wrong ones."""

    def __init__(self, sharpen=1.0, shift=0.0, prior=False, centres=(0.0, 2.0)):
        self.sharpen, self.shift, self.prior = sharpen, shift, prior
        self.centres = centres

    def __call__(self, inputs):
        sd, average = 1 / 3, inputs.values.mean()
        centres = jnp.asarray(self.centres)
        mean = (centres + 8 * average) / 9 + self.shift * sd
        precision = jnp.full((len(self.centres), 1, 1), 1 / (sd * self.sharpen))
        if self.prior:
            mean, precision = centres, jnp.ones_like(precision)
        inner = Gaussian(mean[:, None], precision, jnp.ones((len(self.centres), 1), bool))
        blocks = {"parameters": ByMechanism(inner)}
        if len(self.centres) > 1:
            # Evidence: the average is normal about the centre with variance 1 + 1/8.
            evidence = -((average - centres) ** 2) / (2 * 9 / 8)
            logits = jnp.log(jnp.array([0.75, 0.25])) + (0 if self.prior else evidence)
            blocks["mechanism"] = Categorical(logits * self.sharpen**-6)
        return inputs.values[:, 0], blocks


@pytest.fixture(scope="module")
def mixture():
    mechanisms = {
        name: Level({"level": dist.Normal(centre, 1.0)}) for name, centre in CENTRES.items()
    }
    study = sg.Study(
        sg.simulators.MechanismMixture(mechanisms, probabilities=(0.75, 0.25), table_size=4),
        sg.observations.Gaussian(sd=1.0, prior={}),
        sg.Several(
            sg.Estimate(derived={"doubled": lambda theta: 2 * theta["level"]}), sg.Identify()
        ),
    )
    return sg.SimulationStream(study, jax.random.key(0), batch_size=64)


@pytest.fixture(scope="module")
def single():
    study = sg.Study(Constant(), sg.observations.Gaussian(sd=1.0, prior={}), sg.Estimate())
    return sg.SimulationStream(study, jax.random.key(0), batch_size=64)


def diagnose(stream, network, **options) -> sg.diagnostics.Diagnosis:
    return sg.diagnose(sg.Predictor(stream.study, network), stream, KEY, **options)


def test_exact_posterior_passes(mixture):
    seen = []
    found = diagnose(mixture, Exact(), num_simulations=2000, progress=seen.append)
    assert found.passed and "none of 13 tests" in found.summary
    quantities = ["level", "doubled", LIKELIHOOD, DENSITY, FIXED, BY_DATA]
    assert [(test.about, test.mechanism) for test in found.tests] == [
        (about, name) for name in CENTRES for about in quantities
    ]
    assert seen[-1] == found.num_simulations >= 2000 and not found.notes
    shares = [test.found.num / found.num_simulations for test in found.tests]
    assert set(shares) == {0.75, 0.25}
    # What the data tell, in closed form: contraction 8/9, information log(9) / 2.
    for name in CENTRES:
        known = found.contractions["level", name]
        assert abs(known.value - (1 - 1 / 9)) < 4 * known.standard_error + 1e-3
        gain = found.gains["parameters", name]
        assert abs(gain.value - np.log(9) / 2) < 4 * gain.standard_error
    assert found.gains["mechanism", ""].informative
    rows = found.table()
    assert {row["verdict"] for row in rows} == {"nothing wrong found"}
    assert rows[0]["width"] == pytest.approx(1, abs=0.1) and rows[2]["width"] is None


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"sharpen": 0.8}, "too narrow"), ({"shift": 0.3}, "too high by 0.")],
)
def test_wrong_posterior_is_found_out(mixture, wrong, words):
    found = diagnose(mixture, Exact(**wrong), num_simulations=2000)
    assert not found.passed and "tests found errors" in found.summary
    rows = {(row["about"], row["mechanism"]): row for row in found.table()}
    assert rows["level", "low"]["verdict"].startswith(words)
    if "sharpen" in wrong:
        assert rows[DENSITY, "low"]["verdict"] == "the joint posterior is too narrow"
        assert "too narrow" in rows[BY_DATA, "low"]["verdict"]
        # Its probabilities are sharpened too.
        row = found.table()[-1]
        assert row["about"] == "probabilities of mechanisms" and row["wrong"]


def test_prior_is_right_and_knows_nothing(mixture):
    found = diagnose(mixture, Exact(prior=True), num_simulations=2000)
    wrong = {test.about for i, test in enumerate(found.tests) if found.adjusted[i] < 0.01}
    assert wrong == {LIKELIHOOD, BY_DATA} and not found.passed
    assert "worse than the truth" in found.verdict(2)
    assert not any(skill.informative for skill in found.contractions.values())
    assert found.gains["parameters", "low"].value == pytest.approx(0, abs=1e-5)
    assert not found.gains["mechanism", ""].informative


class Levels(sg.predictors.Network):
    """The same answers as quantiles, or as a mean alone; and quantiles of a forecast."""

    def __init__(self, stretch=1.0, point=False):
        self.stretch, self.point = stretch, point

    def __call__(self, inputs):
        count = inputs.values.shape[0]
        mean, sd = inputs.values.mean() * count / (count + 1), 1 / np.sqrt(count + 1)
        normal = jax.scipy.stats.norm.ppf(jnp.asarray(LEVELS)) * self.stretch
        level = Quantiles((mean + sd * normal)[None, None], jnp.ones((1, 1)), LEVELS)
        ahead = jnp.arcsinh(mean + np.sqrt(sd**2 + 1) * normal)
        forecast = Quantiles(jnp.tile(ahead, (2, 1)), jnp.ones(2), LEVELS)
        if self.point:
            level = Point(mean[None, None], jnp.ones((1, 1)))
            forecast = Point(jnp.ones(2), jnp.ones(2))
        return inputs.values[:, 0], {"parameters": ByMechanism(level), "forecast": forecast}


@pytest.fixture(scope="module")
def forecast():
    study = sg.Study(
        Constant(),
        sg.observations.Gaussian(sd=1.0, prior={}),
        sg.Several(sg.Estimate(), sg.Forecast(context=6, horizon=2)),
    )
    return sg.SimulationStream(study, jax.random.key(0), batch_size=64)


@pytest.mark.parametrize("stretch", [1.0, 0.7])
def test_heads_of_quantiles_are_judged_at_their_own_levels(forecast, stretch):
    found = diagnose(forecast, Levels(stretch), num_simulations=2000)
    assert [test.about for test in found.tests] == ["level", "level[+1]", "level[+2]"]
    assert found.passed == (stretch == 1.0)
    assert found.contractions["level", ""].value == pytest.approx(6 / 7, abs=0.02)
    assert not found.gains


def test_heads_of_points_give_contraction_alone(forecast):
    found = diagnose(forecast, Levels(point=True), num_simulations=200)
    assert not found.tests and found.contractions["level", ""].informative
    assert found.passed and "give nothing" in found.summary
    assert "forecast" in found.notes[0] and "cannot give `quantile`" in found.notes[0]


def test_a_context_is_all_that_the_likelihood_sees(forecast):
    """Judged with all eight values, the posterior of six would look wrong."""
    study = sg.Study(Constant(), sg.observations.Gaussian(sd=1.0, prior={}), sg.Estimate(context=6))
    stream = sg.SimulationStream(study, jax.random.key(0), batch_size=64)

    class Six(sg.predictors.Network):
        def __init__(self):
            pass

        def __call__(self, inputs):
            mean = inputs.values.mean() * 6 / 7
            inner = Gaussian(mean[None, None], jnp.full((1, 1, 1), np.sqrt(7.0)),
                             jnp.ones((1, 1), bool))  # fmt: skip
            return inputs.values[:, 0], {"parameters": ByMechanism(inner)}

    found = diagnose(stream, Six(), num_simulations=1000)
    assert found.passed and LIKELIHOOD in [test.about for test in found.tests]


def test_what_has_no_likelihood_is_noted(single):
    observation = sg.observations.Gaussian()  # its sd has a prior, and is not estimated
    study = sg.Study(Constant(), observation, sg.Estimate("level"))
    stream = sg.SimulationStream(study, jax.random.key(0), batch_size=64)
    found = diagnose(stream, Exact(centres=(0.0,)), num_simulations=200)
    assert LIKELIHOOD not in [test.about for test in found.tests]
    assert "are not estimated" in found.notes[0]
    assert ("parameters", "") in found.gains  # the prior of the level stands by itself


@pytest.mark.slow
def test_untrained_predictor_knows_only_the_prior(outbreak):
    """Known quantities, parameters that one mechanism lacks, equations to solve for each draw."""
    stream = sg.SimulationStream(outbreak, jax.random.key(0), batch_size=64)
    predictor = sg.predictors.for_study(outbreak, jax.random.key(2), width=16, depth=1)
    found = sg.diagnose(predictor, stream, KEY, num_simulations=200, num_draws=31)
    tested = {(test.about, test.mechanism) for test in found.tests}
    assert ("sigma", "SEIR") in tested and ("sigma", "SIR") not in tested
    assert not any(about == "population" for about, _ in tested) and not found.notes
    wrong = {
        (test.about, test.mechanism)
        for index, test in enumerate(found.tests)
        if found.adjusted[index] < 0.01
    }
    assert wrong >= {(about, name) for about in (LIKELIHOOD, BY_DATA) for name in ("SIR", "SEIR")}
    # A normal fits the logarithms of all rates; not that of the noise, which is half-normal.
    assert not {about for about, _ in wrong} & {"beta", "gamma", "sigma"}
    assert not any(skill.informative for skill in found.contractions.values())
    assert not any(skill.informative for skill in found.gains.values())


def test_sizes_that_say_nothing_are_refused(single):
    with pytest.raises(ValueError, match="100 simulations"):
        diagnose(single, Exact(centres=(0.0,)), num_simulations=50)
