"""Equations as a user wrote them, checked before anything is compiled: one message each."""

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxprs_in_params
from jaxtyping import PyTree

from sgjax.priors import sample_prior
from sgjax.simulators._base import AbstractODESimulator, in_default_precision
from sgjax.simulators._stochastic import AbstractStochasticSimulator

CONCRETE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerBoolConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


NUM_STARTS = 64
"""Initial states that are drawn to see how large a quantity is."""

Equations: TypeAlias = AbstractODESimulator | AbstractStochasticSimulator


def check_equations(simulator: Equations) -> None:
    """Traces one simulation without computing it.

    Raises `ValueError`, naming the class, the method and the remedy, where an equation asks for a
    parameter without prior, needs the value of a parameter or of the state while it is compiled
    (an `if`, a shape, a NumPy function), calls back to the host, or gives another form than it
    should; and where adaptive steps have an absolute tolerance that a quantity of the initial state
    is lost in.
    """
    name = type(simulator).__name__
    key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype)
    theta = jax.eval_shape(lambda key: sample_prior(key, simulator.prior), key)
    state = _traced(name, "initial_state", simulator, _start(simulator), theta)
    time, seen = jax.ShapeDtypeStruct((), jnp.result_type(float)), theta
    if isinstance(simulator, AbstractODESimulator):
        seen = jax.eval_shape(simulator.parameters_at_start, theta)
    for method in ("vector_field", "drift", "diffusion", "rates"):
        equation = getattr(simulator, method, None)
        if equation is not None:
            made = _traced(name, method, simulator, equation, time, state, seen)
            if method != "rates":  # which are of transitions
                _check_form(f"{name}.{method}", state, made)
    count = simulator.ts.size
    course = jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype), state)
    values = _traced(name, "readout", simulator, simulator.readout, course, theta)
    _check_tolerance(name, simulator)
    wanted = (count, len(simulator.channels))
    if jnp.shape(values) != wanted:
        raise ValueError(
            f"{name}.readout gives an array of shape {jnp.shape(values)} instead of {wanted}: a "
            f"row for each of the {count} times, a column for each channel of "
            f"{simulator.channels}. The trajectory has time leading; stack along the last axis."
        )


def _check_tolerance(name: str, simulator: Equations) -> None:
    """An outbreak that begins with a millionth of the population is lost in a tolerance of 1e-6."""
    tolerance = getattr(getattr(simulator, "solver", None), "absolute_tolerance", None)
    if tolerance is None:
        return
    keys = jax.random.split(jax.random.key(0), NUM_STARTS)
    draw = lambda key: _start(simulator)(sample_prior(key, simulator.prior))
    starts = jax.jit(jax.vmap(draw))(keys)
    for path, leaf in jax.tree_util.tree_leaves_with_path(starts):
        sizes = np.abs(np.asarray(leaf))
        # Of most simulations: a quantity may be near 0 by chance. One that is 0 grows from others.
        typical = np.median(sizes[sizes > 0]) if np.any(sizes > 0) else np.inf
        if tolerance > typical / 10:
            raise ValueError(
                f"{name} begins with {jax.tree_util.keystr(path)} of about {typical:.1g}, which "
                f"the absolute tolerance {tolerance:g} of its steps does not see: set "
                f"`absolute_tolerance` to {typical / 100:.1g} or less."
            )


def _start(simulator: Equations) -> Callable:
    return lambda theta: in_default_precision(simulator.initial_state(theta))


def _traced(
    name: str, method: str, simulator: Equations, function: Callable, *arguments: Any
) -> Any:
    try:
        jaxpr, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    except CONCRETE as error:
        raise ValueError(
            f"{name}.{method} needs the value of a parameter, of the state or of the time while it "
            "is compiled: an `if`, a loop or a shape that depends on data, or a NumPy function. "
            "Choose with `jnp.where`, use `jnp` functions, and keep sizes in fields. JAX says: "
            f"{str(error).splitlines()[0]}"
        ) from error
    except KeyError as missing:
        if missing.args and missing.args[0] in simulator.prior:
            raise
        raise ValueError(
            f"{name}.{method} asks for {missing}, which has no prior; the parameters are "
            f"{list(simulator.prior)}. Add one, or read a field by `self.quantity(theta, name)`."
        ) from missing
    host = sorted({one for one in _primitives(jaxpr.jaxpr) if "callback" in one or "print" in one})
    if host:
        raise ValueError(
            f"{name}.{method} calls back to the host ({', '.join(host)}), at every step of every "
            "simulation. Write it in `jnp` functions, and look at states in the trajectory."
        )
    return shapes


def _primitives(jaxpr: Any) -> Iterator[str]:
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for inner in jaxprs_in_params(equation.params):
            yield from _primitives(inner)


def _check_form(method: str, state: PyTree, slope: PyTree) -> None:
    if jax.tree.structure(state) != jax.tree.structure(slope):
        raise ValueError(
            f"{method} gives {jax.tree.structure(slope)}, but the state is "
            f"{jax.tree.structure(state)}: return one rate for each quantity, in the same class."
        )
    for (path, leaf), rate in zip(
        jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(slope), strict=True
    ):
        if jnp.shape(rate) != leaf.shape:
            raise ValueError(
                f"{method} gives the rate of {jax.tree_util.keystr(path)} the shape "
                f"{jnp.shape(rate)}; the quantity has {leaf.shape}."
            )
