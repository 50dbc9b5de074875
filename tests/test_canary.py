"""The canary: known-bad versions of jax return wrong numbers here, in silence."""

import jax
import jax.numpy as jnp
import numpy as np


def test_vmapped_reductions_are_right_in_the_last_rows():
    # jax 0.10.2 on the CPU is off by millions in the last of these rows (jax #39103).
    rows = 32_769
    matrix = jnp.asarray(np.random.default_rng(0).normal(size=(4, 4)), jnp.float32)
    vectors = jnp.asarray(np.random.default_rng(1).normal(size=(rows, 4)), jnp.float32)
    # Compiled as users compile, not as the other tests do.
    full = {"xla_backend_optimization_level": 3}
    rows_of = jax.vmap(lambda row: jnp.sum((matrix @ row) ** 2))
    found = jax.jit(rows_of, compiler_options=full)(vectors)
    wide = np.asarray(vectors, np.float64) @ np.asarray(matrix, np.float64).T
    np.testing.assert_allclose(found, (wide**2).sum(axis=1), rtol=1e-4)
