"""The form of steps: measured once, the fastest of those that agree, kept with the run."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import sgjax as sg
from sgjax.runs import Session, Source
from sgjax.simulators import (
    SIR,
    Lorenz96,
    MechanismMixture,
    _forms,
    choose_forms,
    forms,
    with_forms,
)
from sgjax.solvers import AdaptiveSteps, FixedSteps
from sgjax.studies import Preset


@pytest.fixture
def ring():
    prior = {
        "forcing": dist.Uniform(6.0, 10.0),
        "initial": dist.Normal(2.0, 1.0).expand([12]).to_event(1),
    }
    return Lorenz96(prior=prior, ts=[0.04, 0.08], solver=FixedSteps(1))


def test_only_forms_that_make_sense_are_measured(ring):
    assert _forms.possible_forms(SIR()) == ("unrolled",)
    assert _forms.possible_forms(ring) == ("scanned", "unrolled")
    long = dict(ring.prior) | {"initial": dist.Normal(2.0, 1.0).expand([65]).to_event(1)}
    assert _forms.possible_forms(dataclasses.replace(ring, prior=long)) == ("scanned",)
    assert _forms.possible_forms(SIR(solver=AdaptiveSteps())) == ()
    assert _forms.possible_forms(SIR(solver=FixedSteps(form="scanned"))) == ()
    assert choose_forms(SIR()).solver == FixedSteps(4, form="unrolled")


@pytest.mark.parametrize("fast", ["scanned", "unrolled"])
def test_the_fastest_is_chosen(ring, fast, monkeypatch):
    clock = iter([2.0] * 3 + [1.0] * 3 if fast == "scanned" else [1.0] * 3 + [2.0] * 3)
    monkeypatch.setattr(_forms, "_seconds", lambda *_: next(clock))
    assert choose_forms(ring, 16).solver.form == fast


def test_a_form_that_fails_or_differs_is_not_chosen(ring, monkeypatch):
    monkeypatch.setattr(_forms, "_seconds", lambda *_: 1.0)
    monkeypatch.setattr(_forms, "_agree_closely", lambda values, reference: values is reference)
    assert choose_forms(ring, 16).solver.form == "unrolled"
    monkeypatch.undo()

    def fails_scanned(simulator, chosen):
        if "scanned" in chosen.values():
            raise RuntimeError("the compiler cannot")
        return with_forms(simulator, chosen)

    monkeypatch.setattr(_forms, "with_forms", fails_scanned)
    assert choose_forms(ring, 16).solver.form == "unrolled"


def test_agreement_is_that_of_most_simulations():
    values = np.random.default_rng(0).normal(size=(20, 5, 2)).astype(np.float32)
    chaotic = values.copy()
    chaotic[0] = 9.0
    assert _forms._agree_closely(chaotic, values)
    assert not _forms._agree_closely(values * 1.01, values)
    assert not _forms._agree_closely(values * np.nan, values)


def test_forms_of_a_mixture():
    mixture = MechanismMixture({"one": SIR(), "two": SIR()}, (0.75, 0.25), table_size=4)
    changed = with_forms(mixture, {"two": "scanned"})
    assert forms(changed) == {"two": "scanned"}
    assert changed.probabilities == mixture.probabilities
    assert forms(mixture) == {}
    with pytest.raises(ValueError, match="'three' is no mechanism"):
        with_forms(mixture, {"three": "scanned"})


def test_a_run_keeps_its_form(ring, tmp_path, monkeypatch):
    study = sg.Study(ring, sg.observations.Gaussian(sd=1.0, prior={}), sg.Estimate("forcing"))
    source = Source(study, None, None)
    monkeypatch.setattr(
        "sgjax.runs.choose_forms", lambda sim, size: with_forms(sim, {"Lorenz96": "scanned"})
    )
    session = Session.start(source, Preset(num_steps=1, batch_size=16), 0, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["forms"] == {
        "Lorenz96": "scanned"
    }
    assert session.study.simulator.solver.form == "scanned"
    assert session.stream.study.simulator.solver.form == "scanned"
    monkeypatch.setattr("sgjax.runs.choose_forms", None)
    monkeypatch.setattr(Source, "find", lambda text: source)
    again = Session.open(tmp_path / "run")
    assert again.study.simulator.solver.form == "scanned"
    with jax.disable_jit(False):
        redrawn = again.stream.take(2).latent
    np.testing.assert_array_equal(redrawn, session.stream.take(2).latent)
    assert jnp.isfinite(redrawn).all()
