"""The network: `Inputs -> features, {block: predictive distribution}`."""

import abc
from collections.abc import Callable, Mapping

import numpy as np
from flax import nnx
from jaxtyping import Array, ArrayLike, Bool, Float

from sgjax.predictors._base import AbstractHead, AbstractPredictive, Units
from sgjax.predictors.categorical import CategoricalHead
from sgjax.predictors.convolution import Convolution
from sgjax.predictors.encoders import MLP, AbstractEncoder, EncoderFactory, InputShape
from sgjax.predictors.flow_matching import FlowMatchingHead
from sgjax.predictors.gaussian import GaussianHead
from sgjax.predictors.gaussian_mixture import GaussianMixtureHead
from sgjax.predictors.point import PointHead
from sgjax.predictors.quantile import QuantileHead
from sgjax.predictors.scaling import InputScaling, measure_inputs, measure_targets
from sgjax.predictors.spline_flow import SplineFlowHead
from sgjax.predictors.transformer import Transformer
from sgjax.tasks import Example, Inputs, Target, TargetSpec

ENCODERS: dict[str, EncoderFactory] = {
    "mlp": MLP,
    "convolution": Convolution,
    "transformer": Transformer,
}

HeadFactory = Callable[..., AbstractHead]
"""`(width: int, spec: TargetSpec, units: Units, *, rngs: nnx.Rngs) -> AbstractHead`."""

HEADS: dict[str, HeadFactory] = {
    "point": PointHead,
    "quantile": QuantileHead,
    "gaussian": GaussianHead,
    "gaussian_mixture": GaussianMixtureHead,
    "spline_flow": SplineFlowHead,
    "flow_matching": FlowMatchingHead,
    "categorical": CategoricalHead,
}

DEFAULT_HEADS = {
    "parameters": "gaussian",
    "quantities": "quantile",
    "series": "quantile",
    "mechanism": "categorical",
}
"""Which head a block of targets gets unless told otherwise, by kind."""


class AbstractNetwork(nnx.Module):
    """What answers a study: `Inputs -> features, {block: predictive distribution}`."""

    scaling: InputScaling
    """How raw inputs are compared with each other."""
    blocks: tuple[str, ...]
    """The blocks of targets."""

    @abc.abstractmethod
    def __call__(
        self, inputs: Inputs
    ) -> tuple[Float[Array, " width"], dict[str, AbstractPredictive]]:
        """Features and predictive distributions of one example."""

    def scores(self, example: Example) -> dict[str, Float[Array, ""]]:
        """What training minimises on one example, by block. May be overridden."""
        _, predictives = self(example.inputs)
        return {
            block: predictive.score(example.targets[block])
            for block, predictive in predictives.items()
        }


class Network(AbstractNetwork):
    """Scaling, encoder and one head for each block of targets."""

    def __init__(
        self, scaling: InputScaling, encoder: AbstractEncoder, heads: Mapping[str, AbstractHead]
    ):
        self.scaling = scaling
        self.encoder = encoder
        self.heads = nnx.List(list(heads.values()))
        self.blocks = tuple(heads)

    def __call__(
        self, inputs: Inputs
    ) -> tuple[Float[Array, " width"], dict[str, AbstractPredictive]]:
        features = self.encoder(self.scaling(inputs))
        heads = zip(self.blocks, self.heads, strict=True)
        return features, {block: head(features) for block, head in heads}


def build_network(
    specs: Mapping[str, TargetSpec],
    sample_inputs: Inputs,
    sample_targets: Mapping[str, Target],
    valid: Bool[ArrayLike, " batch"] | None = None,
    *,
    encoder: str | EncoderFactory = "mlp",
    heads: Mapping[str, str | HeadFactory] | None = None,
    width: int = 256,
    depth: int | None = None,
    rngs: nnx.Rngs,
) -> Network:
    """A network for the blocks in `specs`, its scales measured from a batch of real simulations.

    **Arguments:** `valid`, which simulations of the batch count; `encoder`, a name in `ENCODERS` or
    a factory; `heads`, by block a name in `HEADS` or a factory, `DEFAULT_HEADS` for the others;
    `width` of the features; `depth`, number of blocks of the encoder, which has its own default.
    """
    chosen = _choose_heads(specs, heads or {})
    make_encoder = _lookup(encoder, ENCODERS, "encoder")
    fixed_times = make_encoder is MLP
    if fixed_times:
        _check_same_times(sample_inputs, valid)
    scaling = InputScaling(measure_inputs(sample_inputs, valid, per_time=fixed_times))
    _, times, channels = sample_inputs.values.shape
    shape = InputShape(times, channels, sample_inputs.known.shape[-1])
    made = {
        block: chosen[block](
            width, spec, measure_units(spec, sample_targets[block], valid), rngs=rngs
        )
        for block, spec in specs.items()
    }
    return Network(scaling, make_encoder(shape, width=width, depth=depth, rngs=rngs), made)


def measure_units(
    spec: TargetSpec, targets: Target, valid: Bool[ArrayLike, " batch"] | None = None
) -> Units:
    """Mean and standard deviation of a block of targets, of each mechanism if by mechanism."""
    mask = np.asarray(targets.mask, bool)
    if valid is not None:
        mask = mask & np.asarray(valid, bool)[:, None]
    if not spec.by_mechanism:
        return Units(spec, *measure_targets(targets.values, mask))
    made_by = np.asarray(targets.mechanism)[:, None]
    rows = [
        measure_targets(targets.values, mask & (made_by == mechanism))
        for mechanism in range(len(spec.present))
    ]
    shifts, scales = zip(*rows, strict=True)
    return Units(spec, np.stack(shifts), np.stack(scales))


def _choose_heads(
    specs: Mapping[str, TargetSpec], heads: Mapping[str, str | HeadFactory]
) -> dict[str, HeadFactory]:
    unknown = [block for block in heads if block not in specs]
    if unknown:
        raise ValueError(f"`heads` names {unknown}; the task has the blocks {list(specs)}.")
    return {
        block: _lookup(heads.get(block, DEFAULT_HEADS[spec.kind]), HEADS, "head")
        for block, spec in specs.items()
    }


def _lookup(asked, known: Mapping[str, Callable], what: str):
    if not isinstance(asked, str):
        return asked
    if asked not in known:
        raise ValueError(f"There is no {what} {asked!r}; choose one of {list(known)}.")
    return known[asked]


def _check_same_times(inputs: Inputs, valid: Bool[ArrayLike, " batch"] | None) -> None:
    ts = np.asarray(inputs.ts)
    ts = ts if valid is None else ts[np.asarray(valid, bool)]
    if len(ts) and not np.allclose(ts, ts[:1]):
        raise ValueError(
            "The times differ between simulations, which encoder 'mlp' does not see; "
            "use encoder='convolution' or 'transformer'."
        )
