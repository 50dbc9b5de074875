"""Which devices take part: the one-axis mesh `data`, joining a cluster, what hardware this is."""

import functools
import os
import platform
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

AXIS = "data"
"""The only mesh axis: simulations are shared out along it."""


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of all devices of all processes (or of those given) along the axis `data`."""
    chosen = np.array(jax.devices() if devices is None else list(devices))
    # Explicit axes, the default of `jax.make_mesh`, make diffrax raise a sharding type error.
    return Mesh(chosen, (AXIS,), axis_types=(AxisType.Auto,))


def initialise() -> str:
    """Joins a cluster where the environment describes one, and says in one line what it joined.

    Reads what `jax.distributed.initialize` reads (SLURM, Cloud TPU, Open MPI, Kubernetes); on one
    machine it does nothing.
    """
    several = any(
        int(os.environ.get(name, "1")) > 1
        for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "JAX_NUM_PROCESSES")
    )
    if several and not jax.distributed.is_initialized():
        jax.distributed.initialize()
    return (
        f"process {jax.process_index() + 1} of {jax.process_count()}, "
        f"{jax.local_device_count()} of {jax.device_count()} devices: {describe_hardware()}"
    )


def jit(function: Callable, **options: Any) -> Any:
    """`jax.jit` for programs that simulate: the same numbers, sooner.

    XLA's CPU compiler fills half a vector register by default; whole ones make ensembles of small
    equations up to twice as fast. For outermost programs only, as JAX demands.
    """
    return jax.jit(function, compiler_options=compiler_options(), **options)


@functools.cache
def compiler_options() -> dict[str, Any] | None:
    """What XLA is told about programs that simulate; nothing where it does not know the option."""
    if jax.default_backend() != "cpu":
        return None
    options = {"xla_cpu_prefer_vector_width": 512}
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:
        return None
    return options


def describe_hardware() -> str:
    """The accelerator, or the processor with the number of cores this process may use."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return f"{device.device_kind} ({device.platform})"
    return f"{_processor()}, {available_cores()} cores (cpu)"


def available_cores() -> int:
    """How many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
