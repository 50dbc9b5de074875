"""Bodies that act on each other in pairs: for particles, charges and planets."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from sgjax.predictors._base import zero_linear
from sgjax.steppers._base import AbstractStepper, FrameShape, Situation


class PairBlock(nnx.Module):
    """Two layers of what is told of a pair or a body."""

    def __init__(self, numbers: int, width: int, *, rngs: nnx.Rngs):
        self.first = nnx.Linear(numbers, width, rngs=rngs)
        self.second = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x: Float[Array, "*pairs numbers"]) -> Float[Array, "*pairs width"]:
        return jax.nn.silu(self.second(jax.nn.silu(self.first(x))))


class Interaction(AbstractStepper):
    r"""A graph network over all pairs that turns with space (cf. Battaglia et al., 2016; Satorras
    et al., 2021).

    $$m_{ij} = \phi(h_i, h_j, |x_{ij}|^2, |v_{ij}|^2, x_{ij} \cdot v_{ij}), \quad
      h_i \leftarrow \psi(h_i, \textstyle\sum_j m_{ij}), \quad
      \Delta_i = \sum_j a(m_{ij})\, x_{ij} + b(m_{ij})\, v_{ij} + \sum_k c_k(h_i)\, v_i^{(k)}$$

    with $x_{ij}$, $v_{ij}$ differences of positions and of their moves over the last frames. What
    it predicts turns, shifts and renumbers with the bodies. Channels are the coordinates of bodies,
    $x$ of all, then $y$, ...; known quantities are one or more numbers a body.

    Raises `ValueError` where channels are not `axes` coordinates of bodies, or known quantities not
    one or more numbers a body.
    """

    width = 64
    depth = 2

    def __init__(self, shape: FrameShape, *, width: int, depth: int, rngs: nnx.Rngs, axes: int = 3):
        bodies = shape.channels // axes
        if shape.channels % axes or shape.known % max(bodies, 1) or shape.controls:
            raise ValueError(
                f"Interaction needs {axes} coordinates of each body, known quantities that are one "
                f"or more numbers a body, and no controls; got {shape}."
            )
        self.axes, self.bodies, self.fields = axes, bodies, 1
        moves = shape.history - 1
        told = shape.known // bodies
        self.begin = nnx.Linear(told + moves, width, rngs=rngs)
        pair = 2 * width + 1 + 2 * moves
        self.messages = nnx.List([PairBlock(pair, width, rngs=rngs) for _ in range(depth)])
        self.updates = nnx.List([PairBlock(2 * width, width, rngs=rngs) for _ in range(depth)])
        self.pull = zero_linear(width, 1 + moves, rngs=rngs)
        self.carry = zero_linear(width, max(moves, 1), rngs=rngs)

    def __call__(self, situation: Situation):
        last = situation.frames[-1].reshape(self.axes, self.bodies).T
        moves = situation.moves.reshape(-1, self.axes, self.bodies).transpose(2, 0, 1)
        apart = last[None] - last[:, None]  # [i, j]: from i to j
        changing = moves[None] - moves[:, None]
        near = jnp.sum(apart**2, axis=-1, keepdims=True)
        along = jnp.einsum("ija,ijka->ijk", apart, changing)
        invariants = jnp.concatenate([jnp.log1p(near), jnp.sum(changing**2, -1), along], axis=-1)
        told = situation.known.reshape(-1, self.bodies).T
        h = self.begin(jnp.concatenate([told, jnp.sum(moves**2, axis=-1)], axis=1))
        other = 1.0 - jnp.eye(self.bodies)[..., None]
        message = jnp.zeros((self.bodies, self.bodies, h.shape[1]))
        for make, update in zip(self.messages, self.updates, strict=True):
            pairs = (
                jnp.broadcast_to(h[None], message.shape),
                jnp.broadcast_to(h[:, None], message.shape),
            )
            message = other * make(jnp.concatenate([*pairs, invariants], axis=-1))
            h = h + update(jnp.concatenate([h, message.sum(axis=1)], axis=1))
        vectors = jnp.concatenate([apart[:, :, None], changing], axis=2)
        change = jnp.einsum("ijk,ijka->ia", other * self.pull(message), vectors)
        if len(situation.moves):
            change += jnp.einsum("ik,ika->ia", self.carry(h), moves)
        return h.mean(axis=0), change.T.ravel()


def turned(
    channels: Float[Array, "*frames channels"], rotation: Float[Array, "axes axes"]
) -> Array:
    """Coordinates of bodies after a rotation of space, for checks of equivariance."""
    axes = len(rotation)
    rows = channels.reshape(*channels.shape[:-1], axes, -1)
    return jnp.einsum("ab,...bn->...an", rotation, rows).reshape(channels.shape)
