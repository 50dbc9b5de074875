"""In which form the steps of a simulator are computed, measured once: `simulator -> simulator`."""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from sgjax._types import Theta
from sgjax.devices import jit
from sgjax.priors import sample_prior
from sgjax.simulators._base import AbstractODESimulator, AbstractSimulator, in_default_precision
from sgjax.simulators._calibration import scaled_errors
from sgjax.simulators._mixture import MechanismMixture, replace_mechanisms
from sgjax.solvers import FEW, FixedSteps, Form, obstacle

MANY = 64
"""Numbers a simulation beyond which stages are not written out: they take long to compile."""
ROUNDS = 3
TOLERANCE = 1e-3
"""How far the forms may differ, in units of a channel's largest value: they differ in rounding."""

S = TypeVar("S", bound=AbstractSimulator | MechanismMixture)


def choose_forms(simulator: S, batch_size: int = 1024) -> S:
    """The simulator with the fastest form of its fixed steps on this machine.

    Where more than one form makes sense and none is set, each is compiled and timed on `batch_size`
    prior draws. Process 0 decides for all. The forms differ in rounding, so choose once and keep
    the outcome (`forms`, `with_forms`), as runs do: another choice would draw other simulations.
    """
    chosen = {}
    for name, mechanism in simulator.mechanisms.items():
        candidates = possible_forms(mechanism)
        if len(candidates) > 1:
            chosen[name] = _agree(_fastest(mechanism, candidates, batch_size), candidates)
        elif candidates:
            chosen[name] = candidates[0]
    return with_forms(simulator, chosen)


def forms(simulator: AbstractSimulator | MechanismMixture) -> dict[str, Form]:
    """By mechanism, the form that is set."""
    solvers = {name: getattr(m, "solver", None) for name, m in simulator.mechanisms.items()}
    return {
        name: solver.form
        for name, solver in solvers.items()
        if isinstance(solver, FixedSteps) and solver.form is not None
    }


def with_forms(simulator: S, forms: Mapping[str, Form]) -> S:
    """The simulator with these forms, by mechanism.

    Raises `ValueError` for a mechanism that it lacks, or that has no fixed Runge-Kutta steps.
    """
    made: dict[str, Any] = dict(simulator.mechanisms)
    for name, form in forms.items():
        solver = getattr(made.get(name), "solver", None)
        if not isinstance(solver, FixedSteps):
            raise ValueError(
                f"{name!r} is no mechanism with fixed Runge-Kutta steps; there are {list(made)}."
            )
        made[name] = dataclasses.replace(made[name], solver=dataclasses.replace(solver, form=form))
    return replace_mechanisms(simulator, made)


def possible_forms(simulator: AbstractSimulator) -> tuple[Form, ...]:
    """The forms worth a measurement; none where a form is set or there are no such steps."""
    solver = getattr(simulator, "solver", None)
    if not isinstance(simulator, AbstractODESimulator) or not isinstance(solver, FixedSteps):
        return ()
    if solver.form is not None:
        return ()
    blank = lambda tree: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), tree)
    thetas = blank(jax.eval_shape(lambda: _draw(simulator, 2)))
    states = blank(jax.eval_shape(_starts(simulator), thetas))
    numbers = sum(leaf.size // 2 for leaf in jax.tree.leaves(states))
    seen = jax.vmap(simulator.parameters_at_start)(thetas)
    apart = obstacle(simulator.field_of_many(), states, seen) is None
    if jax.default_backend() != "cpu" and apart:
        return ("kernel", "unrolled")
    if apart and numbers <= FEW:
        return ("unrolled",)
    return ("scanned",) if numbers > MANY else ("scanned", "unrolled")


def _starts(simulator: AbstractODESimulator):
    return lambda thetas: in_default_precision(jax.vmap(simulator.initial_state)(thetas))


def _draw(simulator: AbstractSimulator, size: int) -> Theta:
    keys = jax.random.split(jax.random.key(0), size)
    return jax.vmap(lambda key: sample_prior(key, simulator.prior))(keys)


def _fastest(simulator: AbstractSimulator, candidates: tuple[Form, ...], size: int) -> Form:
    """Of the candidates that run and agree with the last, which runs everywhere."""
    if jax.process_index() != 0:
        return candidates[-1]
    keys = jax.random.split(jax.random.key(1), size)
    thetas = jax.jit(lambda: _draw(simulator, size))()
    reference, seconds = None, {}
    for form in reversed(candidates):
        try:
            made = with_forms(simulator, {type(simulator).__name__: form})
            program = jit(lambda keys, thetas, made=made: made.simulate_batch(keys, thetas).values)
            values = np.asarray(program(keys, thetas))
        except Exception:
            # Whatever a compiler says of a form that it cannot do, another one serves.
            if form == candidates[-1]:
                raise
            continue
        reference = values if reference is None else reference
        if _agree_closely(values, reference):
            seconds[form] = min(_seconds(program, keys, thetas) for _ in range(ROUNDS))
    return min(seconds, key=lambda form: seconds[form])


def _seconds(program, keys, thetas: Theta) -> float:
    start = time.perf_counter()
    jax.block_until_ready(program(keys, thetas))
    return time.perf_counter() - start


def _agree_closely(values: np.ndarray, reference: np.ndarray) -> bool:
    # The median draw, since chaos makes much of rounding in some.
    return bool(np.median(scaled_errors(values, reference)) <= TOLERANCE)


def _agree(form: Form, candidates: tuple[Form, ...]) -> Form:
    """What process 0 chose, in every process."""
    if jax.process_count() == 1:
        return form
    index = multihost_utils.broadcast_one_to_all(np.int32(candidates.index(form)))
    return candidates[int(index)]
