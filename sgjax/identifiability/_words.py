"""Directions in words: `loadings -> "0.71 log rho - 0.70 log N"`."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

LEAST = 0.1
"""Loadings below this share of the largest are left out of the words."""


def turned(direction: Float[np.ndarray, " size"]) -> Float[np.ndarray, " size"]:
    """Of length 1, and with its largest loading positive: a direction has no sign."""
    largest = direction[np.argmax(np.abs(direction))]
    return direction * np.sign(largest) / np.linalg.norm(direction)


def in_words(direction: Float[np.ndarray, " size"], labels: Sequence[str]) -> str:
    """The loadings that count, largest first."""
    order = np.argsort(-np.abs(direction), kind="stable")
    kept = [i for i in order if abs(direction[i]) >= LEAST * np.abs(direction).max()]
    terms = [
        f"{'-' if direction[i] < 0 else '+'} {abs(direction[i]):.2f} {labels[i]}" for i in kept
    ]
    return " ".join(terms).removeprefix("+ ").replace("- ", "-", int(direction[order[0]] < 0))


def label_of(name: str, logarithmic: bool) -> str:
    """A number by the scale it is measured on."""
    return f"log {name}" if logarithmic else name
