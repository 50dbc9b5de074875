"""Which devices take part: the one-axis mesh `data`, joining a cluster, what hardware this is."""

import functools
import glob
import importlib.util
import json
import os
import platform
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh

AXIS = "data"
"""The only mesh axis: simulations are shared out along it."""

JOIN_SECONDS = 300.0
"""How long processes wait for each other unless told otherwise."""

HEARTBEAT_SECONDS = 100.0
"""After how long a silence a process is taken for dead unless told otherwise."""

SEVERAL = ("JAX_NUM_PROCESSES", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
OWN = ("JAX_PROCESS_ID", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "JOB_COMPLETION_INDEX")
"""Variables that say how many processes there are, and which of them this is."""


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of all devices of all processes (or of those given) along the axis `data`."""
    chosen = np.array(jax.devices() if devices is None else list(devices))
    # Explicit axes, the default of `jax.make_mesh`, make diffrax raise a sharding type error.
    return Mesh(chosen, (AXIS,), axis_types=(AxisType.Auto,))


def mesh_for(batch_size: int, period: int = 1) -> Mesh | None:
    """The mesh of as many devices as share a batch evenly; `None` where that is one device.

    `period` is the size of the study's table of mechanisms, whose multiple each share must be. One
    process leaves devices out where the batch does not divide; raises `ValueError` where several
    processes would, since each must have its share.
    """
    devices = jax.devices()
    count = max(n for n in range(1, len(devices) + 1) if n == 1 or batch_size % (n * period) == 0)
    if jax.process_count() > 1 and count < len(devices):
        raise ValueError(
            f"`batch_size` {batch_size} must be a multiple of {len(devices) * period}: "
            f"{len(devices)} devices of {jax.process_count()} processes times a table of {period} "
            "mechanisms."
        )
    return None if count == 1 else make_mesh(devices[:count])


def initialise(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process: int | None = None,
    *,
    timeout: float = JOIN_SECONDS,
    heartbeat: float = HEARTBEAT_SECONDS,
) -> str:
    """Joins a cluster where there is one, and says in one line what it joined.

    To be called before anything is computed, by every process with the same program. What is not
    given is read from the environment: `JAX_COORDINATOR_ADDRESS` (host:port of process 0),
    `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` (in an indexed Kubernetes job `JOB_COMPLETION_INDEX`),
    or the variables of SLURM's srun, of Open MPI and of Cloud TPU. On one machine it does nothing.

    Nothing is mended inside a process: where one dies, the others end, at the next exchange with it
    or after `heartbeat` seconds of its silence, and all are to be started again.

    Raises `ValueError` where the three do not fit together, and `TimeoutError` where the
    coordinator does not answer within `timeout` seconds. Where other processes stay away, JAX ends
    this one; a line on stderr then says what it waited for.
    """
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    several = num_processes if num_processes is not None else _number(SEVERAL)
    own = process if process is not None else _number(OWN)
    if coordinator and (several is None or own is None or not 0 <= own < several):
        raise ValueError(
            f"The coordinator is {coordinator}, but this is process {own} of {several}: give "
            "`num_processes` and `process`, counted from 0, or set JAX_NUM_PROCESSES and "
            "JAX_PROCESS_ID."
        )
    if not jax.distributed.is_initialized() and ((several or 1) > 1 or _on_tpu()):
        _join(coordinator, several, own, timeout, heartbeat)
    return (
        f"process {jax.process_index() + 1} of {jax.process_count()}, "
        f"{jax.local_device_count()} of {jax.device_count()} devices: {describe_hardware()}"
    )


def several_processes(mesh: Mesh | None) -> bool:
    """Whether a mesh has devices of other processes too."""
    return mesh is not None and len({device.process_index for device in mesh.devices.flat}) > 1


@contextmanager
def ends_with_others() -> Iterator[None]:
    """Ends this process at once, with one line, where work that is shared with others fails.

    Left to itself, JAX first waits for the others to leave together with it. In a single process
    errors pass.
    """
    try:
        yield
    except Exception as error:
        if not is_of_others(error):
            raise
        reason = str(error).partition("\n")[0][:200]
        print(
            f"sgjax: process {jax.process_index() + 1} of {jax.process_count()} ends ({reason}). "
            "Start all of them again; `--resume` goes on with a run.",
            file=sys.stderr,
            flush=True,
        )
        sys.stdout.flush()
        os._exit(1)


def is_of_others(error: Exception) -> bool:
    """Whether an error may come of the loss of another process, by the code that XLA gives it."""
    codes = "ABORTED CANCELLED DEADLINE_EXCEEDED FAILED_PRECONDITION INTERNAL UNAVAILABLE UNKNOWN"
    return jax.process_count() > 1 and str(error).partition(":")[0] in codes.split()


def is_first() -> bool:
    """Whether this process prints and writes: process 0, or the only one."""
    return jax.process_index() == 0


def on_first(function: Callable[[], Any]) -> Any:
    """What process 0 finds by calling the function, told to all: something JSON can hold.

    All processes must call it. Raises what process 0 raised, on the others as `ValueError`.
    """
    if jax.process_count() == 1:
        return function()
    error, told = None, {}
    if is_first():
        try:
            told = {"value": function()}
        except Exception as raised:
            error, told = raised, {"error": str(raised)}
    words = np.frombuffer(json.dumps(told).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(words.size)))
    words = multihost_utils.broadcast_one_to_all(np.resize(words, size))
    told = json.loads(np.asarray(words, np.uint8).tobytes())
    if error is not None:
        raise error
    if "error" in told:
        raise ValueError(told["error"])
    return told["value"]


def from_all(value: bool | float, mesh: Mesh | None) -> np.ndarray:
    """The values of all processes where a mesh spans several, all of which must call this."""
    if not several_processes(mesh):
        return np.asarray([value])
    return np.asarray(multihost_utils.process_allgather(np.asarray(value)))


def fetched(tree: Any) -> Any:
    """Arrays of a mesh as NumPy arrays, whole, on every process (all of which must ask)."""

    def fetch(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array):
            return leaf
        if not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            return multihost_utils.process_allgather(leaf, tiled=True)
        return np.asarray(leaf)

    return jax.tree.map(fetch, tree)


def _join(
    coordinator: str | None, several: int | None, own: int | None, timeout: float, heartbeat: float
) -> None:
    # Left to itself, JAX ends the process with a stack trace when the coordinator is late.
    if coordinator and own:
        _reach(coordinator, timeout)
    # All of it said: JAX need not look for a cluster. Else it also deals out the devices of a host.
    method = "deactivate" if coordinator else None
    late = f"sgjax: after {timeout:g} s not all of the {several} processes have come together"
    notice = threading.Timer(timeout, lambda: print(late, file=sys.stderr, flush=True))
    notice.daemon = True
    notice.start()
    try:
        jax.distributed.initialize(
            coordinator,
            several,
            own,
            cluster_detection_method=method,
            initialization_timeout=round(timeout) + 5,
            heartbeat_timeout_seconds=max(1, round(heartbeat)),
        )
    except ValueError as error:
        raise ValueError(
            f"This is process {own} of {several}, but where they meet is not known ({error}): set "
            "JAX_COORDINATOR_ADDRESS to host:port of process 0."
        ) from None
    finally:
        notice.cancel()


def _reach(coordinator: str, timeout: float) -> None:
    """Waits until the coordinator answers."""
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"The coordinator must be host:port; got {coordinator!r}.")
    end = time.monotonic() + timeout
    while True:
        try:
            left = max(0.1, min(5.0, end - time.monotonic()))
            socket.create_connection((host.strip("[]"), int(port)), left).close()
            return
        except OSError as error:
            if time.monotonic() >= end:
                raise TimeoutError(
                    f"The coordinator {coordinator} did not answer within {timeout:g} s ({error}): "
                    "start process 0 there, or correct JAX_COORDINATOR_ADDRESS."
                ) from None
            time.sleep(0.2)


def _number(names: Sequence[str]) -> int | None:
    """The first of these variables that is set."""
    found = next((name for name in names if os.environ.get(name)), None)
    if found is None:
        return None
    try:
        return int(os.environ[found])
    except ValueError:
        raise ValueError(f"{found} must be a whole number; it is {os.environ[found]!r}.") from None


def _on_tpu() -> bool:
    # As JAX decides it: the library and a chip. A host by itself is a cluster of one.
    chips = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
    wanted = "tpu" in (jax.config.jax_platforms or "tpu")  # pyright: ignore[reportAttributeAccessIssue]
    return wanted and bool(chips) and importlib.util.find_spec("libtpu") is not None


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
    device = jax.local_devices()[0]
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
