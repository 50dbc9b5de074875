"""The systems of the benchmark of learned simulators, each with a stated budget."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpyro.distributions as dist

import sgjax as sg
from sgjax.rollout.protocol import Invariant
from sgjax.steppers import AbstractObjective, OneStep
from sgjax.study import Study


@dataclasses.dataclass(frozen=True)
class System:
    """One system: what is learned, where it is judged, and for how much."""

    domain: str
    trained: Callable[[int], Study]
    """The study with so many frames."""
    outside: Mapping[str, Callable[[int], Study]]
    """Worlds outside of the one trained on."""
    architecture: str
    objectives: tuple[tuple[AbstractObjective, int], ...]
    """What is trained on, one after another, with the updates of each."""
    frames: int
    """Of a course in training."""
    judged: int
    """Of a course in the protocol."""
    batch: int = 32
    learning_rate: float = 2e-3
    width: int | None = None
    lyapunov_time: float = 1.0
    options: Mapping[str, int] = dataclasses.field(default_factory=dict)
    invariants: Mapping[str, Invariant] = dataclasses.field(default_factory=dict)
    restart: Callable[[Any, dict, np.ndarray], tuple[Any, dict]] | None = None
    """`(simulator, thetas, frames) -> simulator, thetas` that begin at the last frame, where the
    simulator has a warm-up that a fair comparison of times must leave out."""
    methods: tuple[str, ...] = ("rk4", "tsit5")
    """What its solver is tried with; not all where its kind of steps has no choice."""


def _lorenz63(low: float = 26.0, high: float = 30.0) -> Callable[[int], Study]:
    prior = {
        "sigma": dist.Uniform(9.99, 10.01),
        "rho": dist.Uniform(low, high),
        "beta": dist.Uniform(2.664, 2.669),
        "initial_x": dist.Normal(0.0, 8.0),
        "initial_y": dist.Normal(0.0, 8.0),
        "initial_z": dist.Uniform(5.0, 40.0),
    }

    def study(frames: int) -> Study:
        ts = [5.0 + 0.05 * i for i in range(frames)]
        simulator = sg.simulators.Lorenz63(prior=prior, ts=ts)
        return sg.Study(simulator, sg.observations.Chain(), sg.NextState(), known=("rho",))

    return study


def _restart63(simulator: Any, thetas: dict, frames: np.ndarray) -> tuple[Any, dict]:
    begin = {f"initial_{name}": frames[:, -1, i] for i, name in enumerate("xyz")}
    return _from_first(simulator, frames.shape[1]), thetas | begin


def _lorenz96(low: float = 7.5, high: float = 8.5) -> Callable[[int], Study]:
    prior = {
        "forcing": dist.Uniform(low, high),
        "initial": dist.Normal(2.3, 3.6).expand([40]).to_event(1),
    }

    def study(frames: int) -> Study:
        ts = [3.0 + 0.05 * i for i in range(frames)]
        simulator = sg.simulators.Lorenz96(prior=prior, ts=ts)
        return sg.Study(simulator, sg.observations.Chain(), sg.NextState(), known=("forcing",))

    return study


def _restart96(simulator: Any, thetas: dict, frames: np.ndarray) -> tuple[Any, dict]:
    return _from_first(simulator, frames.shape[1]), thetas | {"initial": frames[:, -1]}


def _from_first(simulator: Any, history: int) -> Any:
    ts = np.asarray(simulator.ts)
    return dataclasses.replace(simulator, t0=float(ts[history - 1]), ts=ts[history:])


def _bodies(sd: float = 0.3, speed: float = 0.5) -> Callable[[int], Study]:
    prior = {
        "mass": dist.LogNormal(0.0, sd).expand([5]).to_event(1),
        "position": dist.Normal(0.0, 1.0).expand([3, 5]).to_event(2),
        "velocity": dist.Normal(0.0, speed).expand([3, 5]).to_event(2),
    }

    def study(frames: int) -> Study:
        simulator = sg.simulators.Gravity(prior=prior, ts=[0.1 * i for i in range(1, frames + 1)])
        task = sg.NextState(history=2, predicts="acceleration")
        return sg.Study(simulator, sg.observations.Chain(), task, known=("mass",))

    return study


def _cart_pole(low: float = 0.5, high: float = 1.5) -> Callable[[int], Study]:
    def study(frames: int) -> Study:
        within = lambda middle: dist.Uniform(low * middle, high * middle)
        start = dist.Uniform(-1.0, 1.0)
        prior = {
            "cart_mass": within(1.0),
            "pole_mass": within(0.1),
            "half_length": within(0.5),
            "initial_velocity": start,
            "initial_angle": dist.Uniform(-3.1, 3.1),
            "initial_rate": dist.Uniform(-4.0, 4.0),
            "control": dist.Uniform(-10.0, 10.0).expand([frames]).to_event(1),
        }
        ts = [0.02 * i for i in range(1, frames + 1)]
        simulator = sg.simulators.CartPole(prior=prior, ts=ts)
        told = ("cart_mass", "pole_mass", "half_length")
        task = sg.NextState(controls="control")
        return sg.Study(simulator, sg.observations.Chain(), task, known=told)

    return study


def _flame(low: float = 18.0, high: float = 40.0) -> Callable[[int], Study]:
    prior = {
        "length": dist.Uniform(low, high),
        "waves": dist.Normal(0.0, 1.0).expand([2, 5]).to_event(2),
    }

    def study(frames: int) -> Study:
        ts = [1.0 * i for i in range(1, frames + 1)]
        steps = sg.solvers.ExponentialSteps(num_substeps=16)
        simulator = sg.simulators.KuramotoSivashinsky(prior=prior, ts=ts, solver=steps)
        return sg.Study(simulator, sg.observations.Chain(), sg.NextState(), known=("length",))

    return study


def _steepening(low: float = 2e-3, high: float = 2e-2) -> Callable[[int], Study]:
    prior = {
        "viscosity": dist.LogUniform(low, high),
        "waves": dist.Normal(0.0, 1.0).expand([2, 5]).to_event(2),
    }

    def study(frames: int) -> Study:
        simulator = sg.simulators.Burgers(prior=prior, ts=[0.04 * i for i in range(1, frames + 1)])
        return sg.Study(simulator, sg.observations.Chain(), sg.NextState(), known=("viscosity",))

    return study


SYSTEMS = {
    "Lorenz-63": System(
        domain="chaos, for calibration",
        trained=_lorenz63(),
        outside={"rho inside": _lorenz63(27.9, 28.1), "rho 31 to 33": _lorenz63(31.0, 33.0)},
        architecture="mlp",
        objectives=((OneStep(), 16_000),),
        frames=64,
        judged=400,
        options={"depth": 4},
        lyapunov_time=1 / 0.9056,
        restart=_restart63,
    ),
    "Lorenz-96": System(
        domain="weather, for calibration",
        trained=_lorenz96(),
        outside={"forcing 10": _lorenz96(9.5, 10.5)},
        architecture="convolution",
        objectives=((OneStep(windows=16), 4_000),),
        frames=32,
        judged=200,
        batch=16,
        lyapunov_time=1 / 1.69,
        restart=_restart96,
    ),
    "five bodies": System(
        domain="particle physics",
        trained=_bodies(),
        outside={"masses spread twice": _bodies(sd=0.6), "twice as fast": _bodies(speed=1.0)},
        architecture="interaction",
        objectives=((OneStep(windows=8), 4_000),),
        frames=31,
        judged=31,
    ),
    "cart-pole": System(
        domain="robotics",
        trained=_cart_pole(),
        outside={"twice the masses and length": _cart_pole(1.5, 2.0)},
        architecture="mlp",
        objectives=((OneStep(windows=24), 6_000),),
        frames=60,
        judged=101,
    ),
    "Kuramoto-Sivashinsky": System(
        domain="fluid physics",
        trained=_flame(),
        outside={"rings of 40 to 50": _flame(40.0, 50.0)},
        architecture="convolution",
        objectives=((OneStep(windows=8), 4_000),),
        frames=64,
        judged=150,
        batch=16,
    ),
    "Burgers": System(
        domain="fluid physics",
        trained=_steepening(),
        outside={"less viscous": _steepening(1.5e-3, 2e-3)},
        architecture="convolution",
        objectives=((OneStep(windows=8), 3_000),),
        frames=21,
        judged=41,
        batch=16,
    ),
}
"""By name. Each budget is some minutes of one core."""
