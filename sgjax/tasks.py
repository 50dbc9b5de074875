"""Tasks: cut one supervised `Example(inputs, targets)` out of one simulation; no batch axis."""

import abc
from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sgjax._types import Prior, Theta
from sgjax.observations import Observed
from sgjax.priors import event_size, to_free, to_unconstrained
from sgjax.simulators import Latent


class Inputs(eqx.Module):
    """What a predictor is given: a series with its mask, and the quantities known beforehand."""

    ts: Float[Array, "*batch times"]
    values: Float[Array, "*batch times channels"]
    mask: Bool[Array, "*batch times channels"]
    known: Float[Array, "*batch known"]


class Target(eqx.Module):
    """What a predictor is asked for: real numbers, which of them exist here, and the mechanism."""

    values: Float[Array, "*batch size"]
    mask: Bool[Array, "*batch size"]
    mechanism: Int[Array, "*batch"]


class Example(eqx.Module):
    """One supervised pair; one target per block of the task."""

    inputs: Inputs
    targets: dict[str, Target]


Kind: TypeAlias = Literal["parameters", "quantities", "series", "mechanism"]


class TargetSpec(eqx.Module):
    """What a block of targets holds, known before any simulation.

    `names` one per number; `present[k, j]` whether number `j` exists under mechanism `k`;
    `by_mechanism` whether the block is predicted within each mechanism.
    """

    kind: Kind
    names: tuple[str, ...]
    present: np.ndarray
    by_mechanism: bool = False


class World(eqx.Module):
    """What a task knows of a study: its mechanisms with their priors, what is given, the times."""

    priors: dict[str, Prior]
    """The prior of the simulator and of the observation together, by mechanism."""
    thetas: dict[str, Theta]
    """One draw of each, for shapes."""
    known: tuple[str, ...]
    num_times: int
    channels: tuple[str, ...]


class Simulated(eqx.Module):
    """One finished simulation, as a task receives it."""

    mechanism: str
    index: int
    theta: Theta
    latent: Latent
    observed: Observed


class AbstractTask(eqx.Module):
    """A question asked of the data."""

    context: eqx.AbstractVar[int | None]
    """How many times the predictor sees; all where `None`."""

    @abc.abstractmethod
    def specs(self, world: World) -> dict[str, TargetSpec]:
        """The blocks of targets by name. Raises `ValueError` where the world cannot answer."""

    @abc.abstractmethod
    def targets(self, world: World, simulated: Simulated) -> dict[str, Target]:
        """The targets of one simulation, the blocks of `specs`."""

    def inputs(self, world: World, simulated: Simulated) -> Inputs:
        """What the predictor sees of one simulation."""
        known = to_unconstrained(
            world.priors[simulated.mechanism], simulated.theta, names=world.known
        )
        observed, end = simulated.observed, self.context
        return Inputs(
            observed.ts[:end],
            observed.values[:end],
            observed.mask[:end],
            flatten(known, world.known),
        )


class Estimate(AbstractTask):
    """Parameters, functions of parameters, and functions of the latent course.

    **Arguments:** names of parameters (all that are not known where none is given), learned in
    unconstrained space within each mechanism; `derived`, functions of theta, computed from draws of
    the posterior; `latent`, functions `(theta, latent) -> number`, learned as marginals.
    """

    names: tuple[str, ...]
    derived: dict[str, Callable[[Theta], Array]]
    latent: dict[str, Callable[[Theta, Latent], Array]]
    context: int | None

    def __init__(
        self,
        *names: str,
        derived: Mapping[str, Callable[[Theta], Array]] | None = None,
        latent: Mapping[str, Callable[[Theta, Latent], Array]] | None = None,
        context: int | None = None,
    ):
        self.names = names
        self.derived = dict(derived or {})
        self.latent = dict(latent or {})
        self.context = context

    def parameters(self, world: World) -> tuple[str, ...]:
        """The estimated parameters, in the order of the targets."""
        every = dict.fromkeys(name for prior in world.priors.values() for name in prior)
        if not self.names:
            return tuple(name for name in every if name not in world.known)
        missing = [name for name in self.names if name not in every]
        if missing:
            raise ValueError(f"Estimate asks for {missing}; the study has {list(every)}.")
        given = [name for name in self.names if name in world.known]
        if given:
            raise ValueError(f"{given} are declared known; take them out of Estimate.")
        return self.names

    def specs(self, world: World) -> dict[str, TargetSpec]:
        sizes = parameter_sizes(world)
        names = self.parameters(world)
        labels = tuple(label for name in names for label in component_names(name, sizes[name]))
        present = np.array(
            [
                [name in prior for name in names for _ in range(sizes[name])]
                for prior in world.priors.values()
            ]
        )
        blocks = {"parameters": TargetSpec("parameters", labels, present, by_mechanism=True)}
        if self.latent:
            everywhere = np.ones((len(world.priors), len(self.latent)), bool)
            blocks["latent"] = TargetSpec("quantities", tuple(self.latent), everywhere)
        return blocks

    def targets(self, world: World, simulated: Simulated) -> dict[str, Target]:
        prior = world.priors[simulated.mechanism]
        sizes = parameter_sizes(world)
        names = self.parameters(world)
        here = [name for name in names if name in prior]
        unconstrained = to_unconstrained(prior, simulated.theta, names=here)
        absent = {name: jnp.zeros(sizes[name]) for name in names if name not in prior}
        mask = np.array([name in prior for name in names for _ in range(sizes[name])])
        index = jnp.asarray(simulated.index)
        values = flatten(unconstrained | absent, names)
        blocks = {"parameters": Target(values, jnp.asarray(mask), index)}
        if self.latent:
            numbers = jnp.stack(
                [
                    jnp.asarray(function(simulated.theta, simulated.latent), jnp.float32)
                    for function in self.latent.values()
                ]
            )
            blocks["latent"] = Target(numbers, jnp.ones(numbers.shape, bool), index)
        return blocks


class Forecast(AbstractTask):
    r"""The next `horizon` observations of every channel, given the first `context`.

    Learned as $\operatorname{arsinh}(y / \text{scale})$, which is linear below `scale` and
    logarithmic above, since counts span decades; quantiles pass through it unchanged.
    """

    context: int  # pyright: ignore[reportIncompatibleVariableOverride]  (never None here)
    horizon: int
    scale: float = 1.0

    def __check_init__(self):
        if self.context < 1 or self.horizon < 1 or self.scale <= 0:
            raise ValueError("Forecast needs context >= 1, horizon >= 1 and scale > 0.")

    def specs(self, world: World) -> dict[str, TargetSpec]:
        if self.context + self.horizon > world.num_times:
            raise ValueError(
                f"context {self.context} + horizon {self.horizon} exceeds the simulator's "
                f"{world.num_times} times; extend `ts`."
            )
        names = tuple(
            f"{channel}[+{step}]"
            for step in range(1, self.horizon + 1)
            for channel in world.channels
        )
        present = np.ones((len(world.priors), len(names)), bool)
        return {"forecast": TargetSpec("series", names, present)}

    def targets(self, world: World, simulated: Simulated) -> dict[str, Target]:
        del world
        ahead = slice(self.context, self.context + self.horizon)
        values = self.from_data(simulated.observed.values[ahead].ravel())
        mask = simulated.observed.mask[ahead].ravel()
        return {"forecast": Target(values, mask, jnp.asarray(simulated.index))}

    def from_data(self, values: Array) -> Array:
        """From the scale of the data to the learned scale."""
        return jnp.arcsinh(values / self.scale)

    def to_data(self, values: Array) -> Array:
        """From the learned scale to the scale of the data."""
        return self.scale * jnp.sinh(values)


class Identify(AbstractTask):
    """Which mechanism made the data."""

    context: int | None = None

    def specs(self, world: World) -> dict[str, TargetSpec]:
        if len(world.priors) < 2:
            raise ValueError("Identify needs a MechanismMixture of at least two mechanisms.")
        present = np.ones((len(world.priors), len(world.priors)), bool)
        return {"mechanism": TargetSpec("mechanism", tuple(world.priors), present)}

    def targets(self, world: World, simulated: Simulated) -> dict[str, Target]:
        one_hot = jnp.arange(len(world.priors)) == simulated.index
        values = one_hot.astype(jnp.float32)
        return {"mechanism": Target(values, jnp.ones_like(one_hot), jnp.asarray(simulated.index))}


class NextState(AbstractTask):
    r"""The next frame of a course, given the last `history` frames: a learned simulator.

    One simulation is a course of as many frames as the simulator has times, evenly apart. The
    predictor sees all but the last and is asked for the last; in training an objective of
    `sgjax.steppers` cuts windows out of the whole course, so that one solve gives many pairs.

    **Arguments:** `history`, frames that a step looks back at; `predicts`, what a step adds to:
    "change", $u_{t+1} - u_t$; "acceleration", $u_{t+1} - 2 u_t + u_{t-1}$, for positions; "state",
    $u_{t+1}$ itself; `controls`, the name of a parameter that holds one control (or a row of
    them) for each gap between frames, its last rows where it has more: a further input.

    A course in which a value is missing is not valid.
    """

    history: int = 1
    predicts: Literal["change", "acceleration", "state"] = "change"
    controls: str | None = None
    context: int | None = eqx.field(default=-1, init=False)  # all times but the last

    def __check_init__(self):
        least = 2 if self.predicts == "acceleration" else 1
        if self.history < least:
            raise ValueError(
                f"NextState needs history >= {least} to predict the {self.predicts}; "
                f"got {self.history}."
            )

    def specs(self, world: World) -> dict[str, TargetSpec]:
        if world.num_times <= self.history:
            raise ValueError(
                f"history {self.history} and a next frame exceed the simulator's "
                f"{world.num_times} times; extend `ts`."
            )
        for mechanism, theta in world.thetas.items():
            if self.controls is not None and self.controls not in theta:
                raise ValueError(
                    f"{mechanism} has no parameter {self.controls!r} to take controls from."
                )
            if self.controls is not None and len(theta[self.controls]) < world.num_times - 1:
                raise ValueError(
                    f"{self.controls!r} has {len(theta[self.controls])} rows, fewer than the "
                    f"{world.num_times - 1} gaps between frames."
                )
        present = np.ones((len(world.priors), len(world.channels)), bool)
        return {"next state": TargetSpec("series", world.channels, present)}

    def inputs(self, world: World, simulated: Simulated) -> Inputs:
        # Past the ends of the prior's intervals too: a step may be tried on other parameters.
        known = to_free(world.priors[simulated.mechanism], simulated.theta, world.known)
        observed, end = simulated.observed, world.num_times - 1
        # A missing value makes the course invalid, since nothing could be stepped from it.
        values = jnp.where(observed.mask, observed.values, jnp.nan)[:end]
        if self.controls is not None:
            held = jnp.asarray(simulated.theta[self.controls], values.dtype)
            values = jnp.concatenate([values, held.reshape(len(held), -1)[-end:]], axis=1)
        mask = jnp.ones(values.shape, bool)
        return Inputs(observed.ts[:end], values, mask, flatten(known, world.known))

    def targets(self, world: World, simulated: Simulated) -> dict[str, Target]:
        del world
        values = jnp.where(simulated.observed.mask, simulated.observed.values, jnp.nan)[-1]
        index = jnp.asarray(simulated.index)
        return {"next state": Target(values, jnp.ones(values.shape, bool), index)}


class Several(AbstractTask):
    """Several questions asked of the same inputs by one predictor."""

    tasks: tuple[AbstractTask, ...]
    context: int | None

    def __init__(self, *tasks: AbstractTask):
        contexts = {task.context for task in tasks if task.context is not None}
        if len(contexts) > 1:
            raise ValueError(f"The tasks see different contexts {sorted(contexts)}; give them one.")
        self.tasks = tasks
        self.context = contexts.pop() if contexts else None

    def specs(self, world: World) -> dict[str, TargetSpec]:
        blocks: dict[str, TargetSpec] = {}
        for task in self.tasks:
            more = task.specs(world)
            if blocks.keys() & more.keys():
                raise ValueError(f"Two tasks both ask for {sorted(blocks.keys() & more.keys())}.")
            blocks |= more
        return blocks

    def targets(self, world: World, simulated: Simulated) -> dict[str, Target]:
        blocks: dict[str, Target] = {}
        for task in self.tasks:
            blocks |= task.targets(world, simulated)
        return blocks


def parameter_sizes(world: World) -> dict[str, int]:
    """How many unconstrained numbers each parameter has, over all mechanisms."""
    return {
        name: event_size(prior, name, world.thetas[mechanism])
        for mechanism, prior in world.priors.items()
        for name in prior
    }


def component_names(name: str, size: int) -> tuple[str, ...]:
    """`("a",)` for a scalar, `("a[0]", "a[1]", ...)` for a vector."""
    return (name,) if size == 1 else tuple(f"{name}[{index}]" for index in range(size))


def flatten(values: Theta, names: tuple[str, ...]) -> Float[Array, " size"]:
    """Named numbers and vectors as one vector, in the order of `names`."""
    if not names:
        return jnp.zeros(0)
    return jnp.concatenate([jnp.ravel(values[name]) for name in names])
