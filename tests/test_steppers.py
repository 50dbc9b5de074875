"""Learned simulators: the task, the objectives by hand, and what architectures must not notice."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from flax import nnx

import sgjax as sg
from sgjax import steppers
from sgjax.runs import Source
from sgjax.steppers import FrameShape, OneStep, Pushforward, Situation, Unroll
from sgjax.steppers.interaction import turned
from sgjax.studies import StudyError

SITES = 8


def ring(**fields) -> sg.Study:
    prior = {
        "forcing": dist.Uniform(6.0, 10.0),
        "initial": dist.Normal(2.3, 3.6).expand([SITES]).to_event(1),
    }
    simulator = sg.simulators.Lorenz96(prior=prior, ts=[0.04 * i for i in range(1, 7)])
    task = sg.NextState(**fields)
    return sg.Study(simulator, sg.observations.Chain(), task, known=("forcing",))


def normal(seed: int, *shape: int):
    return jax.random.normal(jax.random.key(seed), shape)


# The task -----------------------------------------------------------------------------------------


def test_a_course_is_cut_into_all_but_the_last_frame_and_the_last():
    made = sg.SimulationStream(ring(), jax.random.key(0), 4).take(4)
    inputs, target = made.example.inputs, made.example.targets["next state"]
    assert np.array_equal(inputs.values, made.latent[:, :-1])
    assert np.array_equal(target.values, made.latent[:, -1])
    assert inputs.ts.shape == (4, 5) and inputs.known.shape == (4, 1)


def test_a_missing_value_makes_a_course_invalid():
    study = ring()
    gaps = sg.observations.MissingAtRandom(missing_rate=0.02, prior={})
    lossy = sg.Study(study.simulator, gaps, study.task, known=study.known)
    made = sg.SimulationStream(lossy, jax.random.key(0), 64).take(64)
    whole = np.asarray(made.observed.mask).all(axis=(1, 2))
    assert 0 < whole.sum() < 64
    assert np.array_equal(made.valid, whole)


def test_controls_come_with_the_frame_before_them():
    prior = {"push": dist.Normal(0.0, 1.0).expand([3, 2]).to_event(2)}
    simulator = sg.simulators.Lorenz96(
        prior=ring().simulator.mechanisms["Lorenz96"].prior | prior, ts=[0.1, 0.2, 0.3]
    )
    study = sg.Study(simulator, sg.observations.Chain(), sg.NextState(controls="push"))
    made = sg.SimulationStream(study, jax.random.key(0), 4).take(4)
    values = np.asarray(made.example.inputs.values)
    # Three rows for two gaps: the first row led to the first frame.
    assert np.array_equal(values[..., SITES:], np.asarray(made.theta["push"])[:, 1:])
    built = steppers.for_study(study, jax.random.key(1), width=8, depth=1)
    with pytest.raises(ValueError, match="driven"):
        sg.rollout(built, np.zeros((1, SITES)), 2)
    assert sg.rollout(built, np.zeros((1, SITES)), 2, controls=np.zeros((2, 2))).shape == (2, SITES)


def test_what_cannot_be_asked_is_refused():
    with pytest.raises(ValueError, match="history >= 2"):
        sg.NextState(predicts="acceleration")
    with pytest.raises(ValueError, match="extend `ts`"):
        ring(history=6)
    with pytest.raises(ValueError, match="no parameter 'push'"):
        ring(controls="push")
    with pytest.raises(ValueError, match="fewer than"):
        sg.Study(
            sg.simulators.Lorenz96(ts=[0.1 * i for i in range(1, 60)]),
            sg.observations.Chain(), sg.NextState(controls="initial"),
        )  # fmt: skip
    study = ring()
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="no architecture 'unet'"):
        steppers.for_study(study, key, architecture="unet")
    with pytest.raises(ValueError, match="does not fit"):
        steppers.for_study(study, key, objective=Unroll(steps=6))
    with pytest.raises(ValueError, match="needs a study with task NextState"):
        asked = sg.Study(study.simulator, sg.observations.Gaussian(), sg.Estimate())
        steppers.for_study(asked, key)
    with pytest.raises(ValueError, match="evenly apart"):
        uneven = sg.simulators.Lorenz96(ts=[0.1, 0.2, 0.4])
        steppers.for_study(sg.Study(uneven, sg.observations.Chain(), sg.NextState()), key)
    with pytest.raises(ValueError, match="must be positive"):
        Unroll(steps=0)


# Objectives ---------------------------------------------------------------------------------------

MATRIX = np.array([[0.9, 0.2], [-0.1, 1.1]])
HELD = jnp.zeros((7, 0))
SCALE = jnp.array([1.0, 2.0])


def step_by(matrix, shift=0.0):
    return lambda frames, control: frames[-1] @ jnp.asarray(matrix) + shift


def course_of(matrix, frames: int = 8) -> np.ndarray:
    rows = [np.array([1.0, -0.5])]
    for _ in range(frames - 1):
        rows.append(rows[-1] @ matrix)
    return np.stack(rows)


def score(objective, step, course, history=1, seed=0) -> float:
    course = jnp.asarray(course, jnp.float32)
    return float(objective(step, SCALE, course, HELD, history, jax.random.key(seed)))


@pytest.mark.parametrize("objective", [OneStep(), Unroll(steps=3), Pushforward(steps=3)])
def test_the_true_step_has_no_loss(objective):
    course = course_of(MATRIX)
    for history in (1, 3):
        assert score(objective, step_by(MATRIX), course, history) < 1e-12


def test_objectives_by_hand():
    course, wrong = course_of(MATRIX), MATRIX + 0.05
    scaled = lambda differences: np.mean((differences / np.asarray(SCALE)) ** 2)
    one = scaled(course[:-1] @ wrong - course[1:])
    assert score(OneStep(), step_by(wrong), course) == pytest.approx(one, rel=1e-5)
    power = [np.linalg.matrix_power(wrong, j) for j in (1, 2, 3)]
    ahead = [course[:5] @ power[j] - course[j + 1 : j + 6] for j in range(3)]
    unrolled = scaled(np.stack(ahead, axis=1))
    assert score(Unroll(steps=3), step_by(wrong), course) == pytest.approx(unrolled, rel=1e-5)
    pushed = scaled(ahead[2])
    assert score(Pushforward(steps=3), step_by(wrong), course) == pytest.approx(pushed, rel=1e-5)


def test_derivatives_go_through_the_steps_they_should():
    course = jnp.asarray(course_of(MATRIX, 4), jnp.float32)
    held = HELD[:3]
    value = lambda objective: jax.grad(
        lambda shift: objective(step_by(MATRIX, shift), SCALE, course, held, 1, jax.random.key(0))
    )(jnp.array([0.1, 0.0]))
    # One window of three steps; a shift s moves step j by s (1 + A + ... + A^(j-1)).
    shift, powers = np.array([0.1, 0.0]), [np.eye(2), MATRIX, MATRIX @ MATRIX]
    reach = np.cumsum(powers, axis=0)
    weight = np.diag(1 / np.asarray(SCALE) ** 2)
    through = [2 * shift @ r @ weight @ r.T / 2 for r in reach]
    assert value(Unroll(steps=3)) == pytest.approx(np.mean(through, axis=0), rel=1e-4)
    last = 2 * shift @ reach[2] @ weight / 2
    assert value(Pushforward(steps=3)) == pytest.approx(last, rel=1e-4)
    cut = [2 * shift @ r @ weight / 2 for r in reach]
    assert value(Unroll(steps=3, cut=1)) == pytest.approx(np.mean(cut, axis=0), rel=1e-4)


def test_noise_has_its_size_on_the_last_frame_and_is_fresh():
    course = np.zeros((8, 2))
    still = step_by(np.eye(2))
    for history in (1, 4):
        found = [score(OneStep(noise=0.3), still, course, history, seed) for seed in range(200)]
        assert len(set(found)) == 200
        error = np.std(found) / np.sqrt(200)
        assert abs(np.mean(found) - 0.3**2) < 4 * error


def test_few_windows_estimate_the_loss_of_all():
    course, wrong = course_of(MATRIX), MATRIX + 0.05
    whole = score(OneStep(), step_by(wrong), course)
    few = [score(OneStep(windows=2), step_by(wrong), course, 1, seed) for seed in range(200)]
    assert np.std(few) > 0
    assert abs(np.mean(few) - whole) < 4 * np.std(few) / np.sqrt(200)


def test_an_objective_can_be_changed_between_trainings():
    predictor = steppers.for_study(ring(), jax.random.key(0), width=8, depth=1)
    other = steppers.with_objective(predictor, Unroll(steps=2))
    assert steppers.stepper_of(predictor).objective == OneStep()
    assert steppers.stepper_of(other).objective == Unroll(steps=2)
    stream = sg.SimulationStream(ring(), jax.random.key(1), 8)
    trained = sg.train(other, stream, 2, interval=2)
    assert steppers.stepper_of(trained).objective == Unroll(steps=2)


# Architectures ------------------------------------------------------------------------------------


def stirred(module: nnx.Module) -> nnx.Module:
    """Every weight moved, since last layers begin at 0."""
    graph, weights, rest = nnx.split(module, nnx.Param, ...)
    leaves, tree = jax.tree.flatten(weights)
    moved = [leaf + 0.1 * normal(n, *leaf.shape) for n, leaf in enumerate(leaves)]
    return nnx.merge(graph, jax.tree.unflatten(tree, moved), rest)


def test_scales_are_those_of_the_simulations():
    predictor = steppers.for_study(ring(history=2), jax.random.key(0), architecture="convolution")
    network = steppers.stepper_of(predictor)
    made = sg.SimulationStream(ring(history=2), jax.random.key(7), 8).take(1024)
    values = np.asarray(made.latent)
    scales = network.scales
    # One field: every site has the same scales, those of all sites together.
    assert np.ptp(np.asarray(scales.mean[...])) == np.ptp(np.asarray(scales.sd[...])) == 0
    assert float(scales.mean[0]) == pytest.approx(values.mean(), abs=0.1)
    assert float(scales.sd[0]) == pytest.approx(values.std(), rel=0.03)
    changes = np.sqrt(np.mean(np.diff(values, axis=1) ** 2))
    assert float(scales.change_sd[0]) == pytest.approx(changes, rel=0.03)


def test_a_convolution_turns_with_the_ring_and_reaches_as_far_as_it_says():
    shape = FrameShape(history=2, channels=2 * 40, known=1, controls=0)
    rngs = nnx.Rngs(0)
    net = stirred(steppers.Convolution(shape, width=8, depth=3, rngs=rngs, fields=2))
    frames, moves = normal(1, 2, 80), normal(2, 1, 80)
    at = lambda rows, by: jnp.roll(rows.reshape(-1, 2, 40), by, axis=2).reshape(rows.shape)
    step = lambda by, bump=0.0: net(
        Situation(at(frames, by).at[1, 3].add(bump), at(moves, by), jnp.ones(1), jnp.zeros(0))
    )[1]
    assert step(5) == pytest.approx(np.asarray(at(step(0)[None], 5)[0]), abs=1e-5)
    changed = np.flatnonzero(np.abs(np.asarray(step(0, 1.0) - step(0)).reshape(2, 40)).max(0))
    # Dilations 1, 2, 1: four points to each side of the one that moved.
    assert sorted((changed - 3 + 20) % 40 - 20) == list(range(-4, 5))
    with pytest.raises(ValueError, match="not 3 fields"):
        steppers.Convolution(shape, width=8, depth=3, rngs=rngs, fields=3)


def test_interaction_turns_shifts_and_renumbers_with_the_bodies():
    bodies = 4
    shape = FrameShape(history=3, channels=3 * bodies, known=bodies, controls=0)
    net = stirred(steppers.Interaction(shape, width=16, depth=2, rngs=nnx.Rngs(0)))
    frames, moves, mass = normal(1, 3, 12), normal(2, 2, 12), normal(3, bodies)
    step = lambda f, m, k: np.asarray(net(Situation(f, m, k, jnp.zeros(0)))[1])
    plain = step(frames, moves, mass)
    assert np.abs(plain).max() > 0.01
    rotation = jnp.linalg.qr(normal(4, 3, 3))[0]
    turn = lambda rows: turned(rows, rotation)
    assert step(turn(frames), turn(moves), mass) == pytest.approx(
        np.asarray(turn(jnp.asarray(plain))), abs=1e-4
    )
    assert step(frames + 2.0, moves, mass) == pytest.approx(plain, abs=1e-4)
    order = np.array([2, 0, 3, 1])
    renumber = lambda rows: rows.reshape(*rows.shape[:-1], 3, bodies)[..., order].reshape(
        rows.shape
    )
    assert step(renumber(frames), renumber(moves), mass[order]) == pytest.approx(
        np.asarray(renumber(plain)), abs=1e-4
    )
    with pytest.raises(ValueError, match="coordinates of each body"):
        steppers.Interaction(
            FrameShape(1, 10, 0, 0), width=8, depth=1, rngs=nnx.Rngs(0)
        )  # fmt: skip


def test_acceleration_begins_as_steady_motion():
    prior = {
        "mass": dist.LogNormal(0.0, 0.3).expand([3]).to_event(1),
        "position": dist.Normal(0.0, 1.0).expand([3, 3]).to_event(2),
        "velocity": dist.Normal(0.0, 0.5).expand([3, 3]).to_event(2),
    }
    study = sg.Study(
        sg.simulators.Gravity(prior=prior, ts=[0.1 * i for i in range(1, 7)]),
        sg.observations.Chain(), sg.NextState(history=2, predicts="acceleration"),
        known=("mass",),
    )  # fmt: skip
    fresh = steppers.for_study(
        study, jax.random.key(0), architecture="interaction", width=16, depth=1
    )
    stream = sg.SimulationStream(study, jax.random.key(1), 64)
    made = stream.held_out().take(64)
    truth, mass = np.asarray(made.latent), {"mass": made.theta["mass"]}
    steady = np.asarray(sg.rollout(fresh, truth[:, :2], 1, mass))[:, 0]
    assert steady == pytest.approx(2 * truth[:, 1] - truth[:, 0], abs=1e-5)
    trained = sg.train(
        fresh, stream, 200, interval=200, optimisation=sg.Optimisation(learning_rate=3e-3)
    )
    learned = np.asarray(sg.rollout(trained, truth[:, :2], 1, mass))[:, 0]
    # The median: close encounters, which few steps teach, make up most of a mean square.
    error = lambda made: np.median(np.abs(made - truth[:, 2]))
    assert error(learned) < 0.5 * error(steady)


def test_the_command_refuses_what_is_trained_in_python(tmp_path):
    file = tmp_path / "weather.py"
    file.write_text(
        "import sgjax as sg\n"
        "study = sg.Study(sg.simulators.Lorenz63(), sg.observations.Chain(), sg.NextState())\n"
    )
    with pytest.raises(StudyError, match="trained in Python"):
        Source.find(str(file))
