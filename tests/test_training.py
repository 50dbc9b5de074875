"""Training: a known answer, resuming to the bit, interruption, and broken worlds."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from flax import nnx
from worlds import Constant

import sgjax as sg
from sgjax._types import Prior, Times, as_times
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_divergence_is_told():
    study = sg.Study(Constant(), sg.observations.Gaussian(sd=1.0, prior={}), sg.Estimate())
    stream = sg.SimulationStream(study, jax.random.key(0), batch_size=16)
    predictor = sg.predictors.for_study(study, jax.random.key(1), width=8, depth=1)
    optimisation = sg.Optimisation(learning_rate=1e30)
    with pytest.raises(DivergedError, match=r"last 8 .* step 10 .* lower `learning_rate`"):
        sg.train(predictor, stream, 10, interval=5, optimisation=optimisation, patience=6)


class PartlyBroken(sg.simulators.AbstractSimulator):
    """A level that never changes; what lies above `limit` is not finite."""

    prior: Prior
    limit: float = np.inf
    ts: Times = eqx.field(converter=as_times, default_factory=lambda: np.arange(1.0, 9.0))

    channels = ("level",)

    def simulate(self, key, theta):
        level = jnp.where(theta["level"] > self.limit, jnp.nan, theta["level"])
        values = jnp.broadcast_to(level, (8, 1))
        return sg.simulators.Latent(jnp.asarray(self.ts, jnp.float32), values, None)


class UpTo(dist.Uniform):
    """Uniform on a part of an interval, whose whole is its support, so that coordinates agree."""

    support = dist.constraints.interval(-2.0, 2.0)


def partly_broken(prior: dist.Distribution, limit: float = np.inf) -> sg.Study:
    simulator = PartlyBroken({"level": prior, "other": dist.Normal(0.0, 1.0)}, limit)
    noise = sg.observations.Gaussian(sd=1.0, prior={})
    return sg.Study(simulator, noise, sg.Estimate("level"))


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.01, 0.5])
def test_what_is_not_finite_is_counted_and_the_rest_learnt(share):
    # Uniform up to a limit: without what lies beyond, the prior is the uniform one below it.
    limit = 4 * (1 - share) - 2
    broken = partly_broken(dist.Uniform(-2.0, 2.0), limit)
    whole = partly_broken(UpTo(-2.0, limit))
    scores, reports = {}, []
    for study, kept in ((broken, 1 - share), (whole, 1.0)):
        # As many valid simulations a step, and the same network.
        stream = sg.SimulationStream(study, jax.random.key(0), batch_size=round(128 / kept))
        predictor = sg.predictors.for_study(study, jax.random.key(1), width=16, depth=1)
        optimisation = sg.Optimisation(learning_rate=1e-2, average=0.99)
        predictor = sg.train(
            predictor, stream, 400, interval=200, optimisation=optimisation,
            minimum_valid_share=0.3, callbacks=[reports.append],
        )  # fmt: skip
        drawn = sg.SimulationStream(whole, jax.random.key(5), 512).take(8192).example
        _, blocks = jax.jit(predictor.predict)(drawn.inputs)
        score = jax.vmap(lambda predictive, target: predictive.score(target))
        found = score(blocks["parameters"], drawn.targets["parameters"])
        scores[study is broken] = np.asarray(found)
    gap = scores[True] - scores[False]
    # Two runs that train equally well differ by some thousandths of a nat as well.
    assert abs(gap.mean()) < 4 * gap.std() / np.sqrt(gap.size) + 0.01
    assert reports[2].invalid == {}
    told, drawn = reports[0].invalid, 200 * round(128 / (1 - share))
    error = np.sqrt(share * (1 - share) / drawn)
    assert abs(told["count"] / drawn - share) < 4 * error
    assert told["mechanisms"] == {"PartlyBroken": pytest.approx(told["count"] / drawn)}
    # All of them in the upper quarters of the level, alike in those of the other parameter.
    expected = np.clip((np.array([1, 2, 3, 4]) / 4 - (1 - share)) * 4, 0, 1)
    # Quarters are those of the 4,096 drawn together, of which more or fewer than expected fail.
    blurred = 4 * 4 * np.sqrt(share * (1 - share) / 4096)
    np.testing.assert_allclose(told["quarters"]["level"], expected, atol=blurred)
    np.testing.assert_allclose(told["quarters"]["other"], [share] * 4, atol=8 * error)


def test_nothing_finite_stops():
    study = partly_broken(dist.Uniform(-2.0, 2.0), -2.0)
    stream = sg.SimulationStream(study, jax.random.key(0), batch_size=32)
    predictor = sg.predictors.for_study(study, jax.random.key(1), measure=False, width=8, depth=1)
    with pytest.raises(InvalidSimulationsError, match=r"Only 0.0% .* Every parameter is affected"):
        sg.train(predictor, stream, 10, interval=10)


def test_spikes_are_left_out_and_healthy_updates_never(world):
    predictor, stream = world
    trainer = Trainer(predictor, stream, sg.Optimisation(spike=10.0), STEPS)
    update = jax.jit(trainer.update)
    batch = jax.jit(lambda: stream.batch(0))()
    state = trainer.initial_state()
    for _ in range(5):
        state, _ = update(state, batch)
    assert int(state.skipped) == 0
    # Targets far away: a gradient that is finite, and many times longer.
    far = eqx.tree_at(
        lambda b: b.example.targets["parameters"].values, batch,
        1e4 * jnp.ones_like(batch.example.targets["parameters"].values),
    )  # fmt: skip
    before = state
    for number in (1, 2):
        state, metrics = update(state, far)
        assert np.isfinite(metrics.loss)
        assert (int(state.skipped), int(state.in_a_row)) == (number, number)
    np.testing.assert_array_equal(state.params, before.params)
    assert state.usual > before.usual
    state, _ = update(state, batch)
    assert (int(state.skipped), int(state.in_a_row)) == (2, 0)
    # Were it the new scale, it would be taken up before patience ends.
    for _ in range(100):
        state, _ = update(state, far)
    assert int(state.in_a_row) == 0


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
