"""What all diagnostics together say of a predictor: tests of being right, measures of knowing."""

import dataclasses
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float

from sgjax.diagnostics.skill import ECE, Skill
from sgjax.diagnostics.tarp import area_to_curve
from sgjax.diagnostics.uniform import Uniformity, holm

ALARM = 0.01
"""The chance that a right predictor is called wrong, over all tests together."""

LIKELIHOOD, DENSITY = "log likelihood", "density"
FIXED, BY_DATA = "TARP, fixed", "TARP, by the data"


@dataclasses.dataclass(frozen=True)
class Test:
    """One test: values that are uniform on (0, 1) where the posterior is right.

    `about` is a quantity, or what else was tested; `mechanism` is empty where it spans all.
    """

    about: str
    mechanism: str
    pits: Float[np.ndarray, " simulations"]
    found: Uniformity

    @property
    def is_quantity(self) -> bool:
        """Whether it is about one number, whose posterior can be too high, low, narrow or wide."""
        return self.about not in (LIKELIHOOD, DENSITY, FIXED, BY_DATA)


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """Whether a predictor's posteriors are right, and what they know.

    `tests` are about being right; `adjusted` holds their p-values after Holm, the class
    probabilities' last. `contractions` (by quantity) and `gains` (log score above the prior's, by
    mechanism, in nats) are about knowing, both by (name, mechanism). `calibration_error` is that of
    the mechanisms' probabilities; `notes` say what could not be judged.
    """

    tests: tuple[Test, ...]
    contractions: dict[tuple[str, str], Skill]
    gains: dict[tuple[str, str], Skill]
    calibration_error: ECE | None
    num_simulations: int
    notes: tuple[str, ...]

    @cached_property
    def adjusted(self) -> Float[np.ndarray, " tests"]:
        """p-values after Holm, in the order of `tests`; that of the class probabilities last."""
        raw = [test.found.p_value for test in self.tests]
        error = self.calibration_error
        return holm(raw if error is None else [*raw, error.p_value])

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong; a right predictor fails in one of a hundred diagnoses."""
        return bool(np.all(self.adjusted >= ALARM))

    def verdict(self, index: int) -> str:
        """Of one test, in plain words."""
        test = self.tests[index]
        if self.adjusted[index] >= ALARM:
            return "nothing wrong found"
        if test.is_quantity:
            return test.found.words
        return _joint_words(test)

    @property
    def summary(self) -> str:
        """The whole in a sentence or two."""
        wrong = [i for i in range(len(self.tests)) if self.adjusted[i] < ALARM]
        total = self.adjusted.size
        if not total:
            return "The heads of this predictor give nothing whose calibration could be judged."
        if self.passed:
            return (
                f"On {self.num_simulations:,} fresh simulations none of {total} tests finds "
                "anything wrong with the posteriors."
            )
        worst = max((self.tests[i].found.deviation for i in wrong), default=0.0)
        text = (
            f"On {self.num_simulations:,} fresh simulations {int(np.sum(self.adjusted < ALARM))} "
            f"of {total} tests find the posteriors wrong"
        )
        return (
            f"{text}; probabilities are off by up to {100 * worst:.0f} points."
            if wrong
            else (f"{text}: the mechanisms' probabilities do not match their frequencies.")
        )

    def table(self) -> list[dict[str, Any]]:
        """One row per test, in plain numbers: what a report or `result.json` holds."""
        rows = []
        for index, test in enumerate(self.tests):
            skill = self.contractions.get((test.about, test.mechanism))
            found = test.found
            rows.append(
                {
                    "about": test.about,
                    "mechanism": test.mechanism,
                    "num_simulations": found.num,
                    "p_value": found.p_value,
                    "p_adjusted": float(self.adjusted[index]),
                    "ks_p": found.ks_p,
                    "chi_square_p": found.chi_square_p,
                    "deviation": found.deviation,
                    "bias": found.bias if test.is_quantity else None,
                    "width": found.width if test.is_quantity else None,
                    "contraction": skill.value if skill else None,
                    "contraction_error": skill.standard_error if skill else None,
                    "verdict": self.verdict(index),
                }
            )
        return rows


def _joint_words(test: Test) -> str:
    """Of a test that is about no single quantity."""
    high = test.pits.mean() > 0.5
    if test.about == LIKELIHOOD:
        return f"draws fit their data {'worse' if high else 'better'} than the truth does"
    if test.about == DENSITY:
        return f"the joint posterior is too {'wide' if high else 'narrow'}"
    wide = area_to_curve(test.pits) > 0
    return f"the joint posterior is too {'wide' if wide else 'narrow'}, or off its place"
