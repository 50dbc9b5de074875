"""What is known of the distance between real series and simulations, in numbers and in words."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float

from sgjax.mismatch.classifier import TotalVariation

LEVEL, REJECTED = 0.05, 0.01
"""Of the primary test, and of the other tests after Holm; and where none of the mechanisms is said
to make such data."""

ASSUMED = (0.01, 0.05, 0.1)
"""Total variations that the bounds of the risk are printed for."""

BLIND = (
    "No test without labels sees a change of the target given the series, and the total variation "
    "to reality cannot be certified from above."
)
"""Said of every report."""


@dataclasses.dataclass(frozen=True)
class Divergence:
    """One distance between the real series and the simulations, and how unusual it is."""

    name: str
    value: float
    """The statistic of the real series; its scale means something only beside `null`."""
    null: Float[np.ndarray, " groups"]
    """The same of random groups of as many series."""
    p_value: float
    p_adjusted: float
    """Of the primary test its own p-value; of the others after Holm, over all of these."""
    certifies: str
    blind_to: str
    primary: bool = False


@dataclasses.dataclass(frozen=True)
class MismatchReport:
    r"""How real series differ from simulations, by tests that need no labels.

    `divergences` begin with the primary test, which was declared in advance and has its own 5 %;
    the others share another 5 % (Holm). Were the real series simulations, the primary would sound a
    false alarm 5 % of the time, and any of the others together at most as often. `bounds` are lower
    limits of the total variation, empty where series are too few, as `notes` say.
    """

    num_real: int
    num_simulated: int
    num_groups: int
    """Random groups; of one series, all simulations one by one."""
    divergences: tuple[Divergence, ...]
    bounds: tuple[TotalVariation, ...]
    notes: tuple[str, ...]

    @property
    def primary(self) -> Divergence:
        """The test that decides."""
        return self.divergences[0]

    @property
    def p_value(self) -> float:
        """Of the primary test."""
        return self.primary.p_value

    @property
    def alarms(self) -> tuple[Divergence, ...]:
        """The tests that found something, each at its own level."""
        return tuple(each for each in self.divergences if each.p_adjusted <= LEVEL)

    @property
    def total_variation(self) -> float:
        r"""The largest of the lower limits, 0 where there is none.

        Each limit holds with probability 95 %, so the largest with 90 % at least.
        """
        return max((bound.lower_limit for bound in self.bounds), default=0.0)

    @property
    def verdict(self) -> str:
        """In plain words, with what no such test can see."""
        many = "The data are" if self.num_real == 1 else f"The {self.num_real:,} series are"
        p = f"p = {self.p_value:.3g}, {self.primary.name}"
        if self.p_value <= REJECTED:
            words = (
                f"{many} unlike the simulations ({p}): none of these mechanisms, with this prior "
                "and observation, makes such data. Do not trust the estimates."
            )
        elif self.alarms:
            names = ", ".join(f"{each.name} {each.p_adjusted:.3g}" for each in self.alarms)
            words = (
                f"{many} unusual among the simulations (p by test: {names}): read the estimates "
                "with care."
            )
        else:
            words = f"Nothing found: {_lower(many)} not unusual among the simulations ({p})."
        if self.total_variation > 0:
            words += f" Their total variation from the simulations is {self.total_variation:.2f}"
            words += " at least (90 % confidence)."
        return f"{words} {BLIND}"

    def risk_bounds(self, largest_loss: float = 1.0) -> dict[float, float]:
        r"""$B \epsilon$: by how much the real risk may exceed the simulated one, by assumed TV.

        $$|R_{real}(f) - R_{syn}(f)| \le B \cdot TV(D_{real}, D_{syn}), \quad 0 \le \ell \le B$$

        with the joint law of series and target. The $\epsilon$ are assumptions: data cannot show
        that the total variation is so small.
        """
        return {assumed: largest_loss * assumed for assumed in ASSUMED}

    def table(self) -> list[dict[str, Any]]:
        """One row a test, in JSON."""
        return [
            {
                "test": each.name,
                "primary": each.primary,
                "value": each.value,
                "null_median": float(np.median(each.null)),
                "null_95": float(np.quantile(each.null, 0.95)),
                "p_value": each.p_value,
                "p_adjusted": each.p_adjusted,
                "certifies": each.certifies,
                "blind_to": each.blind_to,
            }
            for each in self.divergences
        ]


def _lower(words: str) -> str:
    return words[0].lower() + words[1:]
