"""Training: a known answer, resuming to the bit, interruption, and broken worlds."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from flax import nnx
from worlds import Constant

import sgjax as sg
from sgjax.checkpoint import Checkpointer, Run, RunError
from sgjax.held_out import HeldOutScore
from sgjax.training import DivergedError, Interrupted, InvalidSimulationsError, Trainer

STEPS = 40


@pytest.fixture(scope="module")
def world(growth):
    stream = sg.SimulationStream(growth, jax.random.key(0), batch_size=32)
    predictor = sg.predictors.for_study(growth, jax.random.key(1), width=16, depth=1)
    return predictor, stream


def weights(predictor: sg.Predictor) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(predictor.network, nnx.Param))]


def same(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(weights(a), weights(b), strict=True))


@pytest.fixture(scope="module")
def undisturbed(world):
    predictor, stream = world
    return sg.train(predictor, stream, STEPS, interval=10)


def test_training_changes_weights_and_repeats(world, undisturbed):
    predictor, stream = world
    assert not same(predictor, undisturbed)
    assert same(undisturbed, sg.train(predictor, stream, STEPS, interval=10))


def test_reports_tell_progress(world):
    predictor, stream = world
    reports = []
    sg.train(predictor, stream, STEPS, interval=10, callbacks=[reports.append])
    assert [report.step for report in reports] == [10, 20, 30, 40]
    assert reports[-1].simulations == STEPS * 32
    assert reports[-1].valid_share == 1 and reports[-1].skipped == 0
    assert reports[-1].seconds_left == 0 and reports[0].seconds_left > 0
    assert reports[0].loss == pytest.approx(sum(reports[0].losses.values()), rel=1e-5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_and_resumed_is_undisturbed(world, undisturbed, tmp_path, number):
    predictor, stream = world
    before = signal.getsignal(number)

    def tell_to_stop(report):
        if report.step == 20:
            os.kill(os.getpid(), number)

    checkpoints = Checkpointer(tmp_path / "states")
    with pytest.raises(Interrupted) as stop:
        sg.train(
            predictor, stream, STEPS, interval=10,
            callbacks=[tell_to_stop], checkpoints=checkpoints,
        )  # fmt: skip
    assert stop.value.step == 20 and stop.value.signal == number
    assert signal.getsignal(number) is before
    checkpoints.close()
    again = Checkpointer(tmp_path / "states")
    assert again.latest_step == 20
    # A blank predictor: weights and scales must all come from the checkpoint.
    blank = sg.predictors.for_study(
        predictor.study, jax.random.key(99), width=16, depth=1, measure=False
    )
    resumed = sg.train(blank, stream, STEPS, interval=10, checkpoints=again)
    again.close()
    assert same(resumed, undisturbed)
    series = np.asarray(stream.take(1).observed.values[0])
    first, second = jax.jit(resumed.predict), jax.jit(undisturbed.predict)
    inputs = jax.tree.map(lambda leaf: leaf[None], predictor.study.inputs(
        sg.predictors.as_observed(predictor.study, series)))  # fmt: skip
    np.testing.assert_array_equal(first(inputs)[0], second(inputs)[0])


def test_a_stop_within_an_interval_changes_nothing(world, tmp_path, monkeypatch):
    whole = sg.train(*world, STEPS, interval=10, ahead=2)
    original, lengths, reports = Trainer.compiled, [], []

    def compiled(self, length, state):
        lengths.append(length)
        if len(lengths) == 8:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, length, state)

    checkpoints = Checkpointer(tmp_path / "states")
    options = {"interval": 10, "ahead": 2, "checkpoints": checkpoints}
    with monkeypatch.context() as patch, pytest.raises(Interrupted) as stop:
        patch.setattr(Trainer, "compiled", compiled)
        sg.train(*world, STEPS, callbacks=[reports.append], **options)
    assert stop.value.step == checkpoints.latest_step == 14 and set(lengths) == {2}
    assert [report.steps for report in reports] == [10, 4]
    resumed = sg.train(*world, STEPS, callbacks=[reports.append], **options)
    checkpoints.close()
    assert [report.step for report in reports] == [10, 14, 20, 30, 40]
    assert same(resumed, whole)


def test_the_held_out_score_is_of_simulations_that_training_never_sees(world):
    predictor, stream = world
    trainer = Trainer(predictor, stream, sg.Optimisation(), STEPS)
    score, state = HeldOutScore(trainer, stream, 100), trainer.initial_state()
    first = score(state)
    held_out = stream.held_out().take(128)  # whole batches
    np.testing.assert_allclose(
        first, trainer.loss(state.average, state.constants, held_out)[0], rtol=1e-4
    )
    assert first == score(state)
    later, _ = trainer.compiled(10, state)(state)
    assert score(later) < first


def train_and_be_killed(folder: str) -> None:
    """Dies a moment after it has begun to write the state of step 30; run in its own process."""

    class Doomed(Checkpointer):
        def save(self, state, *, force=False):
            self.wait()
            if int(state.step) == 30:
                threading.Timer(0.01, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
            super().save(state, force=True)

    sg.train(*constant_world(), STEPS, interval=10, checkpoints=Doomed(Path(folder)))


def constant_world() -> tuple[sg.Predictor, sg.SimulationStream]:
    study = sg.Study(Constant(), sg.observations.Gaussian(sd=1.0, prior={}), sg.Estimate())
    predictor = sg.predictors.for_study(study, jax.random.key(1), width=16, depth=1)
    return predictor, sg.SimulationStream(study, jax.random.key(0), batch_size=32)


@pytest.mark.slow
def test_killed_while_saving_and_resumed_is_undisturbed(tmp_path):
    folder = tmp_path / "states"
    call = f"import test_training; test_training.train_and_be_killed({str(folder)!r})"
    killed = subprocess.run([sys.executable, "-c", call], cwd=Path(__file__).parent)
    assert killed.returncode == -signal.SIGKILL
    checkpoints = Checkpointer(folder)
    assert checkpoints.latest_step in (20, 30)
    resumed = sg.train(*constant_world(), STEPS, interval=10, checkpoints=checkpoints)
    checkpoints.close()
    assert same(resumed, sg.train(*constant_world(), STEPS, interval=10))


def test_a_checkpoint_of_another_network_is_refused(world, tmp_path):
    predictor, stream = world
    checkpoints = Checkpointer(tmp_path / "states")
    sg.train(predictor, stream, STEPS, interval=10, checkpoints=checkpoints)
    wider = sg.predictors.for_study(
        predictor.study, jax.random.key(1), width=24, depth=1, measure=False
    )
    with pytest.raises(RunError, match="does not fit"):
        sg.train(wider, stream, STEPS, interval=10, checkpoints=checkpoints)
    checkpoints.close()


def test_four_devices_learn_what_one_does(world, undisturbed, growth):
    predictor, stream = world
    mesh = sg.devices.make_mesh(jax.devices()[:4])
    shared = sg.SimulationStream(growth, stream.key, 32, mesh)
    trained = sg.train(predictor, shared, STEPS, interval=10)
    for one, four in zip(weights(undisturbed), weights(trained), strict=True):
        # The sum over a batch is taken in another order.
        np.testing.assert_allclose(one, four, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("ahead", [1, 4])
def test_simulating_ahead_changes_nothing_but_the_pace(world, undisturbed, ahead):
    trained = sg.train(*world, STEPS, interval=10, ahead=ahead)
    for one, other in zip(weights(undisturbed), weights(trained), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="ahead"):
        sg.train(*world, STEPS, ahead=0)


def test_the_update_is_one_program(world):
    predictor, stream = world
    trainer = Trainer(predictor, stream, sg.Optimisation(), STEPS)
    state = trainer.initial_state()
    first = trainer.compiled(10, state)
    assert trainer.compiled(10, state) is first
    assert "callback" not in first.as_text()
    state, _ = first(state)
    _, metrics = first(state)  # the second call neither traces nor fails on donated buffers
    assert np.isfinite(metrics.loss).all()


def test_it_reaches_the_bayes_risk():
    # y = mu + noise at 8 times, mu ~ N(0, 1): posterior N(n ybar / (n + s^2), s^2 / (n + s^2)).
    study = sg.Study(Constant(), sg.observations.Gaussian(sd=1.0, prior={}), sg.Estimate())
    stream = sg.SimulationStream(study, jax.random.key(0), batch_size=256)
    predictor = sg.predictors.for_study(
        study, jax.random.key(1), width=32, depth=1, heads={"parameters": "gaussian"}
    )
    reports = []
    optimisation = sg.Optimisation(learning_rate=3e-3, average=0.99)
    predictor = sg.train(
        predictor, stream, 600, interval=200, optimisation=optimisation, callbacks=[reports.append]
    )
    held_out = stream.held_out().take(20_000)

    @jax.jit
    def score(example):
        _, blocks = predictor.predict(example.inputs)
        return jax.vmap(lambda p, t: p.score(t))(
            blocks["parameters"], example.targets["parameters"]
        )

    scores = score(held_out.example)
    exact = held_out.observed.values.mean(axis=(1, 2)) * 8 / 9
    truth = held_out.theta["level"]
    bayes = 0.5 * np.log(2 * np.pi / 9) + 0.5 * 9 * (truth - exact) ** 2
    excess = np.asarray(scores - bayes)
    # The expected excess is a Kullback-Leibler divergence: never below 0 but by chance.
    error = excess.std() / np.sqrt(excess.size)
    assert -4 * error < excess.mean() < 0.01


def test_a_broken_world_stops_and_names_the_parameter():
    study = sg.Study(
        Exploding(), sg.observations.Gaussian(sd=0.1, prior={}), sg.Estimate(), name="exploding"
    )
    stream = sg.SimulationStream(study, jax.random.key(0), batch_size=64)
    predictor = sg.predictors.for_study(study, jax.random.key(1), width=8, depth=1)
    with pytest.raises(InvalidSimulationsError, match="large growth"):
        sg.train(predictor, stream, 10, interval=10)
    # Above the floor it goes on, and the weights stay finite.
    trained = sg.train(predictor, stream, 10, interval=10, minimum_valid_share=0.0)
    assert all(np.isfinite(leaf).all() for leaf in weights(trained))


def test_divergence_is_told():
    study = sg.Study(Constant(), sg.observations.Gaussian(sd=1.0, prior={}), sg.Estimate())
    stream = sg.SimulationStream(study, jax.random.key(0), batch_size=16)
    predictor = sg.predictors.for_study(study, jax.random.key(1), width=8, depth=1)
    optimisation = sg.Optimisation(learning_rate=1e30)
    with pytest.raises(DivergedError, match=r"step 5 to 10 .* lower `learning_rate`"):
        sg.train(predictor, stream, 10, interval=5, optimisation=optimisation)


class Exploding(sg.simulators.AbstractSimulator):
    """Overflows for most of its prior."""

    prior = {"growth": dist.Uniform(0.0, 10.0), "other": dist.Normal(0.0, 1.0)}  # noqa: RUF012
    ts = np.arange(1.0, 3.0)
    channels = ("size",)

    def simulate(self, key, theta):
        size = jnp.exp(jnp.where(theta["growth"] > 4, 1e3, theta["growth"]) * jnp.ones((2, 1)))
        return sg.simulators.Latent(jnp.asarray(self.ts, jnp.float32), size, None)


def test_runs_refuse_what_they_should_not_read(tmp_path):
    folder = tmp_path / "run"
    part = {"words": "LogNormal(loc=0, scale=1)", "sha256": "0"}
    Run.create(folder, {"fingerprint": "a", "parts": {"prior of beta": part, "task": part}})
    with pytest.raises(RunError, match="exists already"):
        Run.create(folder, {})
    with pytest.raises(RunError, match="holds no run"):
        Run.open(tmp_path)
    run = Run.open(folder)
    run.check_study("a", {})
    other = {"words": "LogNormal(loc=0, scale=2)", "sha256": "1"}
    message = r"on: prior of beta was LogNormal\(loc=0, scale=1\), is LogNormal\(loc=0, scale=2\)\."
    with pytest.raises(RunError, match=message):
        run.check_study("b", {"prior of beta": other, "task": part})
    settings = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(settings | {"format": 0}))
    with pytest.raises(RunError, match="another version of sgjax"):
        Run.open(folder)
    (folder / "run.json").write_text("{")
    with pytest.raises(RunError, match="cannot be read"):
        Run.open(folder)
