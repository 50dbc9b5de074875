"""Checked annotations, four CPU devices, compiling fast, shared small worlds."""

import atexit
import os
import shutil
import tempfile

os.environ["JAX_PLATFORMS"] = os.environ.get("JAX_PLATFORMS", "cpu")
# Nearly all the time of the tests is compilation. XLA's own passes stay as they are, but LLVM does
# not polish programs that run for milliseconds. XLA_FLAGS, even empty, brings that back.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
# XLA remarks at length on each program that it finds in the cache: enough to fill the pipe of a
# process that tests start, which then waits for ever.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jaxtyping

# Every annotation of the package is checked at each call, shapes included, where asked for: CI
# asks; it costs a fifth of the time.
if os.environ.get("SGJAX_CHECK_TYPES"):
    jaxtyping.install_import_hook("sgjax", "typecheck.checked")
import sgjax  # noqa: I001  (first, so that it sets EQX_ON_ERROR before equinox is imported)
import jax
import numpyro.distributions as dist
import pytest

if os.environ["JAX_PLATFORMS"] == "cpu":
    jax.config.update("jax_num_cpu_devices", 4)


# Many programs were compiled by another test or process already. The first process makes the
# folder and takes it away.
if "SGJAX_TEST_CACHE" not in os.environ:
    os.environ["SGJAX_TEST_CACHE"] = tempfile.mkdtemp(prefix="sgjax-tests-")
    atexit.register(shutil.rmtree, os.environ["SGJAX_TEST_CACHE"], ignore_errors=True)
jax.config.update("jax_compilation_cache_dir", os.environ["SGJAX_TEST_CACHE"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture
def unchecked():
    """For what a user without the annotations' check is told of a wrong type."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def growth() -> sgjax.Study:
    """A cheap one-mechanism world: decay with known noise, 8 times."""
    return sgjax.Study(
        simulator=sgjax.simulators.ExponentialDecay(
            prior={"rate": dist.LogNormal(0.0, 0.5)}, ts=[0.25 * n for n in range(1, 9)]
        ),
        observation=sgjax.observations.Gaussian(sd=0.05, prior={}),
        task=sgjax.Estimate(),
        name="growth",
    )


@pytest.fixture(scope="session")
def outbreak() -> sgjax.Study:
    """A small mixture of SIR and SEIR with a known population, under noise that compiles fast."""
    world = {"ts": range(1, 9)}
    rates = {
        "beta": dist.LogNormal(0.5, 0.3),
        "gamma": dist.LogNormal(-0.7, 0.3),
        "population": dist.LogNormal(6.0, 0.5),
    }
    return sgjax.Study(
        simulator=sgjax.simulators.MechanismMixture(
            {
                "SIR": sgjax.simulators.SIR(prior=rates, **world),
                "SEIR": sgjax.simulators.SEIR(
                    prior=rates | {"sigma": dist.LogNormal(0.0, 0.5)}, **world
                ),
            },
            probabilities=(0.75, 0.25),
            table_size=4,
        ),
        observation=sgjax.observations.Gaussian(),
        task=sgjax.Several(sgjax.Estimate(), sgjax.Identify()),
        known=("population",),
        name="outbreak",
    )
