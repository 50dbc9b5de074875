"""The compiled part: `simulations -> draws of their posteriors, densities, likelihoods`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from sgjax._types import PRNGKey, Theta
from sgjax.devices import jit
from sgjax.observations import Observed, log_likelihood
from sgjax.predictors import AbstractPredictive, CannotGive, Predictor, natural
from sgjax.priors import log_prior_unconstrained, to_unconstrained
from sgjax.references import log_joint
from sgjax.references.likelihood import condition
from sgjax.simulators import Latent
from sgjax.study import Simulation, Study
from sgjax.tasks import component_names

LEVELS = np.arange(1, 64) / 64
"""Where a marginal is read whose quantiles are known at every level."""

Table = dict[str, Any]
"""Arrays by name, nested; simulations lead in each."""


class Judge:
    """A predictor on simulations; `notes` say what its study or heads do not allow.

    Called with simulations, whole tables of mechanisms, it gives by mechanism under "within", for
    heads with draws: `rows` (parameters on the real line), `quantities` (those and functions of
    them, by name, in their own units), `log_posterior` (the predicted density of the rows) and
    `log_likelihood`, each with the truth before the draws; and `log_prior` of the truth. For heads
    without draws: `estimates` with the truth beside, on the real line. Under "slots", by name, the
    probabilities of the two levels between which the truth lies, for what is judged by quantiles.
    Under "mechanism" the probabilities of the mechanisms. What cannot be given is not there.
    """

    def __init__(self, predictor: Predictor, sample: Simulation, num_draws: int):
        self.predictor, self.study = predictor, predictor.study
        self.num_draws = num_draws
        self.labels = self.study.simulator.mechanism_table
        self.notes: list[str] = []
        self.with_likelihood = [
            name for name in self.study.mechanisms if self._has_likelihood(name, sample)
        ]
        self._program = jit(self._judge)

    def __call__(
        self, simulations: Simulation, key: PRNGKey, size: int, progress: Callable[[int], None]
    ) -> Table:
        """Judges simulations, so many at a time that one program serves all pieces."""
        pieces = []
        for start in range(0, simulations.valid.shape[0], size):
            piece = jax.tree.map(lambda leaf, s=start: leaf[s : s + size], simulations)
            pieces.append(jax.device_get(self._program(piece, jax.random.fold_in(key, start))))
            progress(start + size)
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *pieces)

    def _judge(self, batch: Simulation, key: PRNGKey) -> Table:
        _, blocks = self.predictor.predict(batch.example.inputs)
        found: Table = {"within": {}, "slots": {}}
        labels = self.labels[np.arange(batch.valid.shape[0]) % self.labels.size]
        if "parameters" in blocks:
            for index, mechanism in enumerate(self.study.mechanisms):
                (places,) = np.nonzero(labels == index)
                made, drawn = jax.tree.map(lambda leaf, p=places: leaf[p], (blocks, batch))
                one = jax.vmap(lambda block, i=index: block.select(i))(made["parameters"])
                own = jax.random.split(jax.random.fold_in(key, index), places.size)
                found["within"][mechanism] = self._within(mechanism, one, drawn, own)
        for block, spec in self.study.specs.items():
            if spec.kind not in ("parameters", "mechanism"):
                target = batch.example.targets[block]
                try:
                    slots = _slots(blocks[block], target.values)
                except CannotGive as reason:
                    self.notes.append(f"{block}: {reason}")
                    continue
                for column, name in enumerate(spec.names):
                    counted = target.mask[:, column] & batch.valid
                    found["slots"][name] = (slots[:, :, column], counted)
        if "mechanism" in blocks:
            found["mechanism"] = jax.vmap(lambda one: one.mean())(blocks["mechanism"])
        return found

    def _within(
        self, mechanism: str, predictive: AbstractPredictive, batch: Simulation, keys: PRNGKey
    ) -> Table:
        study = self.study
        spec, values = study.specs["parameters"], batch.example.targets["parameters"].values
        present = spec.present[list(study.mechanisms).index(mechanism)]
        names = [name for name, here in zip(spec.names, present, strict=True) if here]
        try:
            draws = jax.vmap(lambda one, key: one.sample(key, self.num_draws))(predictive, keys)
        except CannotGive:
            return _without_draws(predictive, values, names, present)
        rows = jnp.concatenate([values[:, None], draws], axis=1)
        known = {name: batch.theta[name] for name in study.known}

        def in_units(rows: Array, known: Theta) -> Theta:
            return jax.vmap(lambda row: natural(study, mechanism, row, known))(rows)

        theta = jax.vmap(in_units)(rows, known)
        found = {"rows": rows[:, :, present], "quantities": _numbers(theta)}
        density = jax.vmap(lambda one, rows: jax.vmap(one.log_prob)(rows))
        found["log_posterior"] = density(predictive, rows)
        prior = _log_prior(study, mechanism, batch.theta)
        if prior is not None:
            found["log_prior"] = prior
        if mechanism in self.with_likelihood:
            found["log_likelihood"] = _likelihoods(study, mechanism, theta, batch)
        return found

    def _has_likelihood(self, mechanism: str, sample: Simulation) -> bool:
        """Whether p(x | theta) of a draw can be computed; a note says why not."""
        study = self.study
        if "parameters" not in study.specs:
            return False
        first = jax.tree.map(lambda leaf: leaf[0], sample)
        try:
            given = {*_estimated(study, mechanism), *study.known}
            absent = [name for name in study.priors[mechanism] if name not in given]
            if absent:
                raise ValueError(f"{absent} are not estimated.")
            known = {name: first.theta[name] for name in study.known}
            log_joint(study, mechanism, first.observed, known)  # refuses what draws chance itself
            theta = {name: sample.theta[name][:, None] for name in study.priors[mechanism]}
            jax.eval_shape(lambda: _likelihoods(study, mechanism, theta, sample))
        except ValueError as reason:
            self.notes.append(f"The log likelihood within {mechanism} is not judged: {reason}")
            return False
        return True


def _likelihoods(
    study: Study, mechanism: str, theta: Theta, batch: Simulation
) -> Float[Array, "simulations draws"]:
    r"""$\log p(x \mid \theta)$ of every row of draws; `theta` has axes simulations, draws."""
    size, number = next(iter(theta.values())).shape[:2]
    known = {
        name: jnp.broadcast_to(batch.theta[name][:, None], (size, number)) for name in study.known
    }
    theta = theta | known
    flat = {name: value.reshape(size * number, *value.shape[2:]) for name, value in theta.items()}
    # A mechanism without chance of its own: its key decides nothing.
    keys = jax.random.split(jax.random.key(0), size * number)
    latent = study.mechanisms[mechanism].simulate_batch(keys, flat)
    courses = Latent(
        latent.ts.reshape(size, number, -1),
        latent.values.reshape(size, number, *latent.values.shape[1:]),
        None,
    )
    seen = (np.arange(study.ts.size) < study.context_ts.size)[:, None]

    def one(theta: Theta, latent: Latent, observed: Observed) -> Array:
        record = Observed(observed.ts, observed.values, observed.mask & seen)
        return log_likelihood(study.observation, theta, latent, record)

    return jax.vmap(jax.vmap(one, in_axes=(0, 0, None)))(theta, courses, batch.observed)


def _log_prior(study: Study, mechanism: str, theta: Theta) -> Float[Array, " simulations"] | None:
    """The prior density of what is estimated, on the real line, given what is known."""
    prior = study.priors[mechanism]

    def one(theta: Theta) -> Array:
        own = {name: theta[name] for name in prior}
        given = condition(prior, {name: theta[name] for name in study.known})
        asked = {name: given[name] for name in _estimated(study, mechanism)}
        return log_prior_unconstrained(asked, to_unconstrained(prior, own, names=asked))

    try:
        return jax.vmap(one)(theta)
    except ValueError:  # it hangs on a parameter that is not estimated
        return None


def _estimated(study: Study, mechanism: str) -> list[str]:
    labels = study.specs["parameters"].names
    return [name for name in study.priors[mechanism] if name in labels or f"{name}[0]" in labels]


def _without_draws(
    predictive: AbstractPredictive,
    values: Float[Array, "simulations components"],
    names: list[str],
    present: Bool[np.ndarray, " components"],
) -> Table:
    """Quantiles, or a mean alone: the maps to the real line leave levels unchanged."""
    found: Table = {}
    try:
        slots = _slots(predictive, values)[:, :, present]
        found["slots"] = {name: slots[:, :, column] for column, name in enumerate(names)}
        estimates = jax.vmap(lambda one: one.quantile([0.5])[0])(predictive)
    except CannotGive:
        estimates = jax.vmap(lambda one: one.mean())(predictive)
    both = jnp.stack([estimates, values], axis=1)[:, :, present]
    found["estimates"] = {name: both[:, :, column] for column, name in enumerate(names)}
    return found


def _slots(
    predictive: AbstractPredictive, values: Float[Array, "simulations size"]
) -> Float[Array, "simulations 2 size"]:
    """The levels next below and above each truth, 0 and 1 beyond the last.

    A head that learns quantiles knows its own levels only: between them it interpolates.
    """
    levels = np.asarray(getattr(predictive, "levels", LEVELS))
    edges = jnp.concatenate([jnp.zeros(1), jnp.asarray(levels, jnp.float32), jnp.ones(1)])

    def one(predictive: AbstractPredictive, values: Array) -> Array:
        below = jnp.sum(predictive.quantile(levels) < values, axis=0)
        return jnp.stack([edges[below], edges[below + 1]])

    return jax.vmap(one)(predictive, values)


def _numbers(theta: Theta) -> dict[str, Float[Array, "simulations draws"]]:
    """One entry per number, vectors by component."""
    numbers = {}
    for name, values in theta.items():
        columns = values.reshape(*values.shape[:2], -1)
        for column, label in enumerate(component_names(name, columns.shape[-1])):
            numbers[label] = columns[..., column]
    return numbers
