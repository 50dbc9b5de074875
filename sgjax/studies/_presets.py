"""How long and with what network a study is trained, unless the user says otherwise."""

import dataclasses
from typing import Literal, get_args, get_type_hints


@dataclasses.dataclass(frozen=True)
class Preset:
    """Network and budget of a training run."""

    num_steps: int = 20_000
    """Updates, each on a batch of fresh simulations."""
    batch_size: int = 512
    """Simulations per update, over all devices."""
    learning_rate: float = 1e-3
    """The peak of the schedule."""
    encoder: Literal["mlp", "convolution", "transformer"] = "mlp"
    """How the series is read."""
    width: int = 256
    """Number of features."""
    depth: int = 3
    """Blocks of the encoder."""
    head: Literal[
        "gaussian_mixture", "spline_flow", "flow_matching", "gaussian", "quantile", "point"
    ] = "gaussian_mixture"
    """The predictive distribution of the parameters."""

    def __post_init__(self):
        # Refused here, before a run has a folder.
        for name, hint in get_type_hints(type(self)).items():
            choices, value = get_args(hint), getattr(self, name)
            if choices and value not in choices:
                raise ValueError(f"`{name}` must be one of {list(choices)}; got {value!r}.")
            if not choices and not value > 0:
                raise ValueError(f"`{name}` must be positive; got {value}.")
