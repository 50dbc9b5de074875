"""Rollouts and the protocol: every measure by hand, baselines, and a world that is known."""

import jax
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

import sgjax as sg
from sgjax import steppers
from sgjax.rollout import (
    Scales,
    baselines,
    evaluate_rollout,
    judge,
    measures,
    rollout,
    speed_up,
)
from sgjax.rollout._rollout import known_rows

TS = [0.2 * i for i in range(12)]


def oscillator(times=TS, **fields) -> sg.Study:
    """A linear world: the exact step is a matrix."""
    prior = {
        "angular_frequency": dist.Uniform(0.9999, 1.0001),
        "initial_position": dist.Normal(0.0, 1.0),
        "initial_velocity": dist.Normal(0.0, 1.0),
    }
    simulator = sg.simulators.HarmonicOscillator(prior=prior, ts=times)
    return sg.Study(simulator, sg.observations.Chain(), sg.NextState(**fields))


@pytest.fixture(scope="module")
def learned():
    """A position alone is no state, so two frames are looked back at."""
    study = oscillator(history=2)
    fresh = steppers.for_study(study, jax.random.key(0), width=32, depth=1)
    stream = sg.SimulationStream(study, jax.random.key(1), 32)
    rate = sg.Optimisation(learning_rate=5e-3)
    return fresh, sg.train(fresh, stream, 300, interval=300, optimisation=rate)


def courses(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


# Measures -----------------------------------------------------------------------------------------


def test_relative_error_and_vrmse_by_hand():
    truth = np.array([[[3.0, 4.0], [0.0, 2.0]]])
    predicted = truth + np.array([[[0.0, 1.0], [2.0, 0.0]]])
    assert measures.relative_error(predicted, truth).tolist() == [[0.2, 1.0]]
    # The variance of (3, 4) is 1/4, of (0, 2) it is 1.
    expected = np.sqrt([[0.5 / (0.25 + 1e-7), 2.0 / (1.0 + 1e-7)]])
    assert measures.vrmse(predicted, truth) == pytest.approx(expected)


def test_the_mean_of_a_field_has_vrmse_one():
    truth = courses(0, 5, 3, 40)
    mean = np.broadcast_to(truth.mean(axis=-1, keepdims=True), truth.shape)
    assert measures.vrmse(mean, truth) == pytest.approx(1.0, rel=1e-5)


def test_what_is_not_finite_is_infinitely_wrong():
    truth = courses(1, 4, 6, 3)
    predicted = truth.copy()
    predicted[0, 2:] = np.nan
    predicted[1, 3:] = np.inf
    for measure in (measures.relative_error, measures.vrmse):
        errors = measure(predicted, truth)
        assert np.isinf(errors[0, 2:]).all() and np.isinf(errors[1, 3:]).all()
        assert (errors[2:] == 0).all()
    assert measures.correlation(predicted, truth)[0, 3] == -1.0
    sd, mean = np.ones(3), np.zeros(3)
    assert measures.valid_time(predicted, truth, sd, 0.5).tolist() == [1.0, 1.5, 3.0, 3.0]
    assert measures.survival(predicted, mean, sd) == 0.5
    assert measures.histogram_distance(predicted, truth, sd) > 1.0
    assert np.isfinite(measures.spectrum_distance(predicted, truth))
    assert measures.spectrum_distance(np.full_like(truth, np.nan), truth) == np.inf


def test_measures_do_not_see_the_order_of_channels_and_know_their_units():
    truth, noise = courses(2, 4, 5, 6), courses(3, 4, 5, 6)
    order, unit = np.random.default_rng(4).permutation(6), 7.0
    for measure in (measures.relative_error, measures.correlation):
        found = measure(truth + noise, truth)
        assert measure((truth + noise)[..., order], truth[..., order]) == pytest.approx(found)
        assert measure(unit * (truth + noise), unit * truth) == pytest.approx(found)
    sd = truth.std(axis=(0, 1))
    scaled = measures.scaled_error(truth + noise, truth, sd)
    assert measures.scaled_error(unit * (truth + noise), unit * truth, unit * sd) == pytest.approx(
        scaled
    )


def test_correlation_is_pearsons():
    predicted, truth = courses(5, 2, 1, 30), courses(6, 2, 1, 30)
    expected = [stats.pearsonr(a[0], b[0])[0] for a, b in zip(predicted, truth, strict=True)]
    assert measures.correlation(predicted + 5.0, truth)[:, 0] == pytest.approx(expected)
    huge = measures.correlation(1e200 * predicted, truth)[:, 0]
    assert huge == pytest.approx(expected)
    assert (measures.correlation(np.ones_like(truth), truth) == 0).all()


def test_times_count_from_the_frame_a_rollout_starts_from():
    truth = np.zeros((3, 4, 1))
    predicted = np.zeros((3, 4, 1))
    predicted[0, 0:], predicted[1, 2:] = 1.0, 1.0
    assert measures.valid_time(predicted, truth, np.ones(1), 0.5).tolist() == [0.0, 1.0, 2.0]
    wave = np.sin(np.linspace(0, 6, 20))
    field = np.tile(wave, (2, 5, 1))
    broken = field.copy()
    broken[:, 3:] *= -1
    assert measures.correlation_time(broken, field, 0.1) == pytest.approx(0.3)
    assert measures.correlation_time(field, field, 0.1) == pytest.approx(0.5)


def test_a_wave_has_its_energy_at_its_wavenumber():
    x = 2 * np.pi * np.arange(32) / 32
    energy = measures.spectrum(np.tile(1.0 + 3.0 * np.cos(4 * x), (2, 3, 1)))
    assert energy[3] == pytest.approx((3 / 2) ** 2)
    assert np.delete(energy, 3) == pytest.approx(0.0, abs=1e-12)
    field = courses(7, 3, 4, 32)
    assert measures.spectrum_distance(field, field) == 0.0
    assert measures.spectrum_distance(10 * field, field) == pytest.approx(2.0)


def test_histograms_are_compared_in_deviations():
    truth = courses(8, 50, 40, 2) * [1.0, 5.0]
    sd = np.array([1.0, 5.0])
    assert measures.histogram_distance(truth, truth, sd) == 0.0
    assert measures.histogram_distance(truth + 0.5 * sd, truth, sd) == pytest.approx(0.5, rel=1e-6)
    # Which course, and when, does not matter.
    assert measures.histogram_distance(truth[::-1, ::-1], truth, sd) == pytest.approx(
        0.0, abs=1e-12
    )


def test_drift_is_the_largest_relative_one():
    energy = np.array([[2.0, 2.1, 1.8], [-1.0, -1.0, -1.0], [1.0, np.nan, 1.0]])
    assert measures.drift(energy) == pytest.approx([0.1, 0.0, np.inf])
    assert measures.geometric_mean(np.array([[1.0, 3.0], [3.0, 5.0]])) == pytest.approx(np.sqrt(8))


def test_outside_models_are_scored_and_wrong_shapes_refused():
    truth = courses(9, 6, 10, 3)
    scales = Scales(np.zeros(3), np.ones(3), dt=0.1, lyapunov_time=2.0)
    found = evaluate_rollout(truth, truth, scales)
    assert found["valid time"] == found["longest"] == pytest.approx(0.5)
    assert found["survival"] == 1.0 and set(found["relative error"]) == {1, 2, 4, 8, 10}
    assert "correlation time" not in found
    fields = Scales(np.zeros(3), np.ones(3), dt=0.1, fields=1)
    assert evaluate_rollout(truth, truth, fields)["correlation time"] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="without the frames they begin from"):
        evaluate_rollout(truth[:, 1:], truth, scales)
    with pytest.raises(ValueError, match="not finite"):
        evaluate_rollout(truth, np.where(truth > 0, np.nan, truth), scales)


# Rollouts -----------------------------------------------------------------------------------------


def test_an_untrained_simulator_changes_nothing(learned):
    fresh, _ = learned
    frames = courses(10, 4, 2, 1)
    made = np.asarray(rollout(fresh, frames, 5))
    assert made.shape == (4, 5, 1)
    assert made == pytest.approx(np.repeat(frames[:, -1:], 5, axis=1), rel=1e-6)
    assert np.array_equal(rollout(fresh, frames[0], 5), made[0])


def test_training_learns_the_step_and_a_rollout_repeats_it(learned):
    _, trained = learned
    exact = oscillator(history=2)
    stream = sg.SimulationStream(exact, jax.random.key(5), 16).held_out()
    truth = np.asarray(stream.take(64).latent)
    made = np.asarray(rollout(trained, truth[:, :2], 10))
    assert made.shape == truth[:, 2:].shape
    error = np.sqrt(np.mean((made - truth[:, 2:]) ** 2))
    assert error < 0.1 * np.sqrt(np.mean((truth[:, 1:2] - truth[:, 2:]) ** 2))
    # Two rollouts of five steps are one of ten.
    again = np.asarray(rollout(trained, made[:, 3:5], 5))
    assert again == pytest.approx(made[:, 5:], rel=1e-5, abs=1e-5)


def test_the_protocol_finds_the_linear_map_of_a_linear_world(learned):
    _, trained = learned
    report = judge(
        trained, oscillator([0.2 * i for i in range(20)], history=2), jax.random.key(3),
        courses=16, stored=128, invariants={"nothing": lambda theta, course: np.ones(len(course))},
    )  # fmt: skip
    one_step = {row["model"]: row["one step"] for row in report.rows}
    # What is left of the linear map are the float32 of the courses and the ridge.
    assert one_step["linear"] < 1e-3 < one_step["nearest simulation"] < one_step["persistence"]
    assert one_step["learned"] < 0.3 * one_step["persistence"]
    row = report.row("as trained")
    assert row["skill"]["persistence"] > 0.7 and row["drift of nothing"] == 0.0
    assert row["longest"] == pytest.approx(0.2 * 18) and row["survival"] == 1.0
    assert report.row("as trained", "its solver")["valid time"] == row["longest"]
    assert "nearest simulation" in str(report)


def test_worlds_that_cannot_be_judged_are_refused(learned):
    _, trained = learned
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="gap between times"):
        judge(trained, oscillator([0.1 * i for i in range(12)], history=2), key)
    with pytest.raises(ValueError, match="evenly apart"):
        judge(trained, oscillator([0.0, 0.2, 0.5, 0.6], history=2), key)
    for nothing in ({"courses": 0}, {"stored": 0}):
        with pytest.raises(ValueError, match="Judging needs a world"):
            judge(trained, trained.study, key, **nothing)
    with pytest.raises(ValueError, match="got 0 world"):
        judge(trained, {}, key)


def test_wrong_frames_and_unknown_quantities_are_refused(learned):
    fresh, _ = learned
    with pytest.raises(ValueError, match="looks back at 2 frame"):
        rollout(fresh, np.zeros((4, 3, 1)), 5)
    with pytest.raises(ValueError, match="at least 1"):
        rollout(fresh, np.zeros((2, 1)), 0)
    with pytest.raises(ValueError, match="is told"):
        rollout(fresh, np.zeros((2, 1)), 5, {"mass": 1.0})
    with pytest.raises(ValueError, match="expected"):
        rollout(fresh, np.zeros((2, 1)), 5, controls=np.zeros((5, 2)))
    with pytest.raises(ValueError, match="`frames` are not all finite"):
        rollout(fresh, np.array([[0.0], [np.nan]]), 5)


def test_baselines_by_hand():
    """A world that doubles, told a push: the linear map finds both, the nearest its own past."""
    starts = courses(11, 20, 1)
    pushes = courses(12, 20, 4, 1)
    rows = [starts]
    for step in range(4):
        rows.append(2 * rows[-1] + pushes[:, step])
    made = np.stack(rows, axis=1)
    windows = baselines.Windows(made, np.zeros((20, 0)), pushes, 1)
    step = baselines.linear(windows)
    assert step(np.array([[[3.0]]]), np.array([[0.5]])) == pytest.approx(6.5, rel=1e-3)
    near = baselines.nearest(windows)
    assert near(made[:, 1:2], pushes[:, 1]) == pytest.approx(made[:, 2])
    assert np.isnan(near(np.array([[[np.nan]]]), np.zeros((1, 1)))).all()
    still = baselines.persistence(sg.NextState())
    assert np.array_equal(still(made[:, 1:2], pushes[:, 1]), made[:, 1])
    moving = baselines.persistence(sg.NextState(history=2, predicts="acceleration"))
    assert np.array_equal(moving(made[:, :2], pushes[:, 1]), 2 * made[:, 1] - made[:, 0])
    rolled = baselines.roll(still, made[:, :1], np.zeros((20, 0)), pushes)
    assert np.array_equal(rolled, np.repeat(made[:, :1], 4, axis=1))


def test_known_quantities_reach_the_step_past_the_ends_of_their_priors():
    simulator = sg.simulators.HarmonicOscillator(ts=TS)
    study = sg.Study(
        simulator, sg.observations.Chain(), sg.NextState(), known=("angular_frequency",)
    )
    rows = np.asarray(known_rows(study, {"angular_frequency": np.array([1.0, 2.0])}, 2))
    assert rows[:, 0] == pytest.approx(np.log([1.0, 2.0]), abs=1e-6)
    assert np.asarray(known_rows(study, {"angular_frequency": 2.0}, 3)).shape == (3, 1)
    # An interval does not end where its prior does.
    weather = sg.Study(
        sg.simulators.Lorenz63(), sg.observations.Chain(), sg.NextState(), known=("rho",)
    )
    rows = np.asarray(known_rows(weather, {"rho": np.array([30.0, 60.0])}, 2))
    assert rows[:, 0] == pytest.approx(np.log([30.0, 60.0]), rel=1e-6)
    with pytest.raises(ValueError, match="priors of \\['rho'\\] rule out"):
        known_rows(weather, {"rho": -5.0}, 1)
    with pytest.raises(ValueError, match="has shape"):
        known_rows(study, {"angular_frequency": np.ones(4)}, 3)
    example = sg.SimulationStream(study, jax.random.key(0), 8).take(8)
    told = np.asarray(known_rows(study, {n: example.theta[n] for n in study.known}, 8))
    assert np.asarray(example.example.inputs.known) == pytest.approx(told, rel=1e-6)


def test_speed_up_is_interpolated_within_the_sweep_and_bounded_outside():
    solver = [np.full(50, error) for error in (1e-1, 1e-3, 1e-5)]
    times = [1.0, 2.0, 4.0]
    same = lambda error: speed_up(np.full(50, error), 0.5, solver, times)
    assert same(1e-3).ratio == pytest.approx(4.0) and same(1e-3).bound == ""
    # Halfway in log error is halfway in log time.
    assert same(1e-4).ratio == pytest.approx(2 * np.sqrt(8.0))
    assert (same(1e-6).ratio, same(1e-6).bound) == (8.0, "at least")
    assert (same(1.0).ratio, same(1.0).bound) == (2.0, "at most")
    # A slower setting with a larger error is no choice, wherever it stands.
    worse = speed_up(np.full(50, 1e-4), 0.5, [*solver, np.full(50, 1e-2)], [*times, 3.0])
    assert worse.ratio == pytest.approx(same(1e-4).ratio)
    spread = speed_up(np.exp(courses(1, 50)) * 1e-4, 0.5, solver, times)
    assert spread.low < spread.ratio < spread.high
    with pytest.raises(ValueError, match="at least two settings"):
        speed_up(np.ones(5), 0.5, [np.ones(5)], [1.0])
