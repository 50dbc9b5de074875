"""Studies and tasks: what is asked, what is refused, and what a broken simulation becomes."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import sgjax as sg
from sgjax.simulators import SIR, MechanismMixture

NOISE = sg.observations.Gaussian(sd=1.0, prior={})


def test_known_parameters_are_inputs_not_targets(outbreak):
    made = sg.SimulationStream(outbreak, jax.random.key(0), 8).take(8)
    assert "population" not in outbreak.specs["parameters"].names
    np.testing.assert_allclose(
        made.example.inputs.known[:, 0], np.log(made.theta["population"]), rtol=1e-5
    )


def test_targets_are_the_unconstrained_parameters(outbreak):
    made = sg.SimulationStream(outbreak, jax.random.key(0), 8).take(8)
    target = made.example.targets["parameters"]
    column = outbreak.specs["parameters"].names.index("beta")
    np.testing.assert_allclose(target.values[:, column], np.log(made.theta["beta"]), rtol=1e-5)
    label = made.example.targets["mechanism"].values
    np.testing.assert_array_equal(np.argmax(label, axis=1), made.mechanism)


def test_a_broken_simulation_is_marked_and_made_constant():
    # beta above 3 breaks: the prior's upper half gives infinite rates.
    study = sg.Study(
        SIR(prior={"beta": dist.Uniform(2.0, 4.0), "gamma": dist.Uniform(0.4, 0.6)}),
        Poisoned(),
        sg.Estimate(),
    )
    made = sg.SimulationStream(study, jax.random.key(0), 256).take(256)
    broken = np.asarray(made.theta["beta"]) > 3
    np.testing.assert_array_equal(~broken, made.valid)
    for leaf in jax.tree.leaves(made.example):
        assert np.isfinite(np.asarray(leaf, float)).all()
        assert not np.asarray(leaf)[broken].any()


class Poisoned(sg.observations.AbstractNoise):
    """Noise that is not a number where beta is above 3."""

    prior: dict = eqx.field(default_factory=dict)

    def draw(self, key, theta, mean):
        return jnp.where(theta["beta"] > 3, jnp.nan, mean)

    def log_density(self, theta, mean, values):
        return jnp.zeros_like(mean)


def test_functions_of_the_latent_course():
    study = sg.Study(
        SIR(population=100.0),
        NOISE,
        sg.Estimate("beta", latent={"peak": lambda theta, latent: latent.states.I.max()}),
    )
    made = sg.SimulationStream(study, jax.random.key(0), 4).take(4)
    np.testing.assert_allclose(
        made.example.targets["latent"].values[:, 0], made.latent.max(axis=(1, 2)), rtol=1e-6
    )


def test_forecast_cuts_and_round_trips():
    task = sg.Forecast(context=10, horizon=4)
    study = sg.Study(SIR(population=763.0), NOISE, task)
    made = sg.SimulationStream(study, jax.random.key(0), 4).take(4)
    assert made.example.inputs.values.shape == (4, 10, 1)
    ahead = task.to_data(made.example.targets["forecast"].values)
    np.testing.assert_allclose(ahead, made.observed.values[:, 10:, 0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: study_of(sg.Forecast(12, 4)), "context 12 [+] horizon 4 exceeds .* 14 times"),
        (lambda: study_of(sg.Estimate("delta")), "asks for .*delta"),
        (lambda: study_of(sg.Identify()), "MechanismMixture"),
        (lambda: study_of(sg.Estimate(), known=("size",)), "size.* no prior"),
        (lambda: study_of(sg.Estimate("beta"), known=("beta",)), "declared known"),
        (lambda: study_of(sg.Several(sg.Estimate(), sg.Estimate())), "Two tasks"),
        (lambda: MechanismMixture({"a": SIR(), "b": SIR(ts=range(1, 9))}), "other times"),
        (lambda: MechanismMixture({"a": SIR(), "b": SIR()}, (1.0, 1e-4)), "without a place"),
        (lambda: MechanismMixture({"a": SIR()}, table_size=3), "power of two"),
        (lambda: SIR(ts=[1.0, 1.0]), "strictly increasing"),
        (lambda: SIR(ts=range(-3, 4)), "before the start"),
    ],
)
def test_wrong_construction_names_the_remedy(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def study_of(task, known=()):
    return sg.Study(SIR(), sg.observations.Poisson(), task, known=known)


def test_prior_names_must_not_clash():
    with pytest.raises(ValueError, match="both name"):
        sg.Study(
            SIR(),
            sg.observations.Gaussian(prior={"beta": dist.HalfNormal(1.0)}),
            sg.Estimate(),
        )


def test_fingerprint_tells_studies_apart():
    base = study_of(sg.Estimate())
    assert base.fingerprint() == study_of(sg.Estimate()).fingerprint()
    wider = {"beta": dist.LogNormal(0.0, 1.0), "gamma": dist.LogNormal(0.0, 1.0)}
    others = [
        study_of(sg.Estimate("beta")),
        sg.Study(SIR(population=2.0), sg.observations.Poisson(), sg.Estimate()),
        sg.Study(SIR(prior=wider), sg.observations.Poisson(), sg.Estimate()),
        sg.Study(SIR(), sg.observations.NegativeBinomial(), sg.Estimate()),
        sg.Study(SIR(ts=range(2, 16)), sg.observations.Poisson(), sg.Estimate()),
    ]
    prints = {base.fingerprint(), *(study.fingerprint() for study in others)}
    assert len(prints) == 1 + len(others)


def test_a_mixture_of_one_is_its_mechanism():
    alone = sg.Study(SIR(), NOISE, sg.Estimate())
    mixed = sg.Study(MechanismMixture({"SIR": SIR()}, table_size=1), NOISE, sg.Estimate())
    drawn = [sg.SimulationStream(s, jax.random.key(0), 8).take(8) for s in (alone, mixed)]
    np.testing.assert_array_equal(drawn[0].observed.values, drawn[1].observed.values)
