"""The sections of a report: `Page -> HTML`, each empty where the analysis has nothing to say."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sgjax import datasets, plots
from sgjax._drawing import Units
from sgjax._page import (
    DASH,
    Cell,
    details,
    finite,
    label,
    number,
    paragraph,
    percent,
    picture,
    probability,
    rounded,
    section,
    spread,
    table,
)
from sgjax.analysis import Analysis
from sgjax.diagnostics import Calibration
from sgjax.predictors import find_task
from sgjax.study import Study
from sgjax.tasks import Identify

MEASURES = ("mean", "sd", "q05", "q50", "q95")
MEASURE_WORDS = ("mean", "sd", "5 %", "50 %", "95 %")


@dataclasses.dataclass(frozen=True)
class Page:
    """What the sections are written from."""

    analysis: Analysis
    calibration: Calibration | None
    curve: list[dict]
    settings: dict[str, Any]

    @property
    def result(self) -> dict[str, Any]:
        return self.analysis.result

    @property
    def units(self) -> Units:
        """Those of the shipped dataset that the study is named after; of values, of no others."""
        for dataset in vars(datasets).values():
            if isinstance(dataset, datasets.Dataset) and dataset.name.startswith(self.study.name):
                values = np.asarray(self.analysis.observed.values)
                same = values.shape == dataset.values.shape and np.allclose(values, dataset.values)
                return Units(dataset.time_unit, dataset.unit if same else "")
        return Units()

    @property
    def study(self) -> Study:
        return self.analysis.study

    @property
    def mechanism(self) -> tuple[str, float]:
        """The most probable one."""
        shares = self.result.get("mechanisms") or self.study.mechanism_probabilities
        best = max(shares, key=lambda name: shares[name] if finite(shares[name]) else -1.0)
        return best, shares[best]

    @property
    def several(self) -> bool:
        return len(self.study.mechanisms) > 1

    @property
    def identified(self) -> bool:
        """Whether the study asks which mechanism it is."""
        return self.several and find_task(self.study.task, Identify) is not None


def data(figure: Figure) -> str:
    caption = (
        "The data and the simulations that the network deems most like them, as an instrument "
        "would have recorded them, coloured by mechanism. The nearer, the stronger the line."
    )
    return section(
        "The data and the simulations nearest to them",
        picture(figure, "The data with the nearest simulations drawn over them", caption),
    )


def estimates(page: Page) -> str:
    found = page.result.get("estimates") or {}
    exact = page.result.get("reference") or {}
    if not any(found.values()):
        return ""
    parts = []
    if any(page.analysis.draws.values()):
        caption = "Marginal posteriors within each mechanism, as if that mechanism were true."
        drawn = plots.plot_estimates(page.analysis)
        parts.append(picture(drawn, "Posterior densities by quantity and mechanism", caption))
    for mechanism, rows in found.items():
        reference = exact.get(mechanism) or {}
        body = [estimate_cells(name, row, reference.get(name)) for name, row in rows.items()]
        title = f"Within {label(mechanism)}" if page.several else ""
        parts.append(table((title, *MEASURE_WORDS), body))
    return section("Estimates", *parts, _reference_note(exact), _latent(page))


def estimate_cells(
    name: str, row: Mapping[str, Any], exact: Mapping[str, Any] | None = None
) -> list[Cell]:
    """One row of numbers, and beneath each, to the same decimals, the exact one."""
    texts = rounded({key: row.get(key) for key in MEASURES}, spread(row))
    if not exact:
        return [Cell(label(name)), *(Cell(texts[key]) for key in MEASURES)]
    beneath = rounded({key: exact.get(key) for key in MEASURES}, spread(row))
    cells = (Cell(texts[key], beneath[key]) for key in MEASURES)
    return [Cell(label(name), "exact reference"), *cells]


def _reference_note(exact: Mapping[str, Any]) -> str:
    if not any(exact.values()):
        return ""
    return paragraph(
        "The exact reference is computed from the likelihood, without a network; the nearer the "
        "two numbers, the better the network.",
        "note",
    )


def _latent(page: Page) -> str:
    rows = page.result.get("latent") or {}
    keys = ("q05", "q50", "q95")
    body = []
    for name, row in rows.items():
        texts = rounded({key: row.get(key) for key in keys}, spread(row))
        body.append([label(name), *(texts[key] for key in keys)])
    words = "Functions of the noiseless course, over all mechanisms"
    return table(("", "5 %", "50 %", "95 %"), body, words) if body else ""


def mechanisms(page: Page) -> str:
    result = page.result
    if not page.identified or not result.get("mechanisms"):
        return ""
    note = (
        "These are probabilities among these mechanisms only: they add to one even if none of them "
        "is right, and say nothing of any other."
    )
    caption = "Probabilities before and after the data; below, had a parameter another prior."
    drawn = picture(plots.plot_mechanisms(result), "Probability of each mechanism", caption)
    rows = [("Before the data", result.get("mechanisms_prior"))]
    rows += [("Given the data", result["mechanisms"])]
    rows += [("Exact reference", result.get("reference_mechanisms"))]
    names = list(result["mechanisms"])
    body = [
        [words, *(percent(shares.get(name), 1) for name in names)]
        for words, shares in rows
        if shares
    ]
    main = table(("", *map(label, names)), body, "Among these mechanisms only")
    return section("Which mechanism", paragraph(note), drawn, main, _sensitivity(page, names))


def _sensitivity(page: Page, names: Sequence[str]) -> str:
    body = []
    for row in page.result.get("sensitivity") or []:
        sizes = [size for size in (row.get("effective_sample_size") or {}).values() if finite(size)]
        least = min(sizes, default=math.nan)
        warning = "too few draws to trust" if least < 0.01 else ""
        shares = [percent(row["probabilities"].get(name), 1) for name in names]
        body.append([Cell(row["prior"]), *shares, Cell(percent(least), warning)])
    if not body:
        return ""
    header = ("Under another prior", *map(label, names), "effective sample size")
    note = (
        "Found by reweighting posterior draws. The effective sample size is a share of the draws; "
        "where it is small, the posterior holds too little of what the other prior expects."
    )
    return "<h3>How much the prior matters</h3>" + table(header, body) + paragraph(note, "note")


def forecast(page: Page) -> str:
    if not page.result.get("forecast"):
        return ""
    caption = "The data and what the network expects next, averaged over mechanisms."
    drawn = plots.plot_forecast(page.analysis, page.units)
    return section("Forecast", picture(drawn, "Fan chart of the forecast", caption))


def mismatch(page: Page) -> str:
    mismatch, stored = page.analysis.mismatch, page.result.get("mismatch") or {}
    p = mismatch.p_value
    tone = "bad" if p < 0.01 else "care" if p < 0.05 else "good"
    searched = f" of {stored['searched']:,}" if finite(stored.get("searched")) else ""
    distances = np.asarray(mismatch.held_out_distances)
    exceeding = int(np.sum(distances >= mismatch.distance))
    facts = (
        f"The mean distance from the data to their {len(mismatch.neighbours.ids)} nearest "
        f"simulations{searched} is {number(mismatch.distance)}. Of {distances.size:,} held-out "
        f"simulations searched in the same way, {exceeding:,} lie at least as far from theirs "
        f"(p = {probability(p)})."
    )
    caption = "Distances of held-out simulations to their nearest ones, and that of the data."
    drawn = plots.plot_mismatch(mismatch)
    limits = (
        "A small p says that the data are unlike every simulation, so that the network "
        "extrapolates and its estimates cannot be trusted. A large p does not say that a mechanism "
        "is right: another may produce the same data, and features that the network does not look "
        "at may differ."
    )
    return section(
        "Do the data belong to the simulated world?",
        paragraph(mismatch.verdict, tone),
        paragraph(facts),
        picture(drawn, "Histogram of distances with that of the data", caption),
        paragraph(limits, "note"),
        _predictive(stored.get("posterior_predictive_p") or {}),
    )


def _predictive(values: Mapping[str, Any]) -> str:
    if not any(finite(p) for p in values.values()):
        return ""
    body = [[label(mechanism), probability(p)] for mechanism, p in values.items()]
    note = (
        "Had the mechanism, fitted to the data, produced them: the probability of data no likelier "
        "than these. Near 0, the mechanism does not reproduce the data; values near 0.5 are usual."
    )
    return table(("Posterior predictive check", "p"), body) + paragraph(note, "note")


def prior_predictive(page: Page) -> str:
    analysis = page.analysis
    words = (page.result.get("prior_predictive") or {}).get("verdict", "")
    caption = "What the prior expects before any training or fitting, and the data over it."
    drawn = plots.plot_prior_predictive(
        analysis.study, analysis.observed, analysis.prior_predictive, page.units
    )
    return section(
        "What the prior expects",
        paragraph(words) if words else "",
        picture(drawn, "Prior predictive bands with the data", caption),
    )


def calibration(page: Page) -> str:
    stored: Mapping[str, Any] = page.result.get("calibration") or (
        page.calibration.summary() if page.calibration else {}
    )
    parts = []
    if page.calibration is not None and (page.calibration.ranks or page.several):
        caption = (
            "Grey bands hold the whole curve or histogram of a right posterior with 95 % "
            "probability. Below zero, intervals are too narrow; above, too wide."
        )
        drawn = plots.plot_calibration(page.calibration, list(page.study.mechanisms))
        parts.append(picture(drawn, "Coverage, reliability and rank histograms", caption))
    body = []
    for name, row in stored.items():
        error = row.get("standard_error") or math.nan
        terciles = list(row.get("coverage_90_by_sd_tercile") or [None] * 3)
        body.append(
            [
                label(name),
                percent(row.get("coverage_50"), 1),
                _judged(row.get("coverage_90"), error),
                f"± {percent(error, 1)}",
                *(_judged(share, error * 3**0.5) for share in terciles),
                _whole(row.get("num_simulations")),
            ]
        )
    if body:
        wide = ("small sd", "middle", "large sd")
        header = ("", "of 50 % intervals", "of 90 %", "standard error", *wide, "simulations")
        parts.append(table(header, body, "Share of truths inside, on held-out simulations"))
        note = (
            "By the thirds of simulations with small, middle and large posterior sd: an interval "
            "should hold at every width. Bold: more than three standard errors from 90 %."
        )
        parts.append(paragraph(note, "note"))
    return section("Can the intervals be trusted?", *parts)


def _whole(count: Any) -> str:
    return f"{round(count):,}" if finite(count) else DASH


def _judged(share: Any, error: float) -> Cell:
    off = finite(share) and finite(error) and abs(share - 0.9) > 3 * error
    return Cell(percent(share, 1), strong=off)


def training(page: Page) -> str:
    parts = []
    if page.curve:
        drawn = plots.plot_training(page.curve)
        caption = "Every simulation is fresh, so this is a loss on unseen data. Lower is better."
        parts.append(picture(drawn, "Training loss against simulations", caption))
    row = page.result.get("training") or {}
    texts = (
        ("Simulations", _whole(row.get("simulations")), row.get("simulations")),
        ("Seconds", number(row.get("seconds")), row.get("seconds")),
        ("Compiling, seconds", number(row.get("compile_seconds")), row.get("compile_seconds")),
        (
            "Simulations a second",
            number(row.get("simulations_per_second")),
            row.get("simulations_per_second"),
        ),
        ("Finite simulations", percent(row.get("valid_share"), 2), row.get("valid_share")),
    )
    body = [[words, text] for words, text, value in texts if value is not None]
    parts.append(table(("Training", ""), body) if body else "")
    return section("Training", *parts)


def averaged(page: Page) -> str:
    rows = page.result.get("model_averaged") or {}
    if not rows:
        return ""
    note = (
        "Averaged over the mechanisms by their probabilities. A parameter may mean different "
        "things in different mechanisms: prefer the estimates within each, above."
    )
    body = [estimate_cells(name, row) for name, row in rows.items()]
    return section("Averaged over mechanisms", paragraph(note), table(("", *MEASURE_WORDS), body))


def provenance(page: Page) -> str:
    result = page.result
    elsewhere = ("seed", "hardware", "versions")
    facts = {"seed": result.get("seed"), "hardware": result.get("hardware")}
    groups = {
        "Seed and hardware": {key: value for key, value in facts.items() if value is not None},
        "Settings": {key: value for key, value in page.settings.items() if key not in elsewhere},
        "Versions": result.get("versions") or {},
    }
    parts = [
        details(words, _listing(flat)) for words, group in groups.items() if (flat := _flat(group))
    ]
    return section("How it was made", *parts)


def _listing(rows: Mapping[str, Any]) -> str:
    body = [[label(name), str(value)] for name, value in rows.items()]
    return f'<div class="words">{table(("", ""), body)}</div>'


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested settings as one level, `outer.inner`."""
    if not isinstance(value, Mapping):
        return {name: value} if name else {}
    rows: dict[str, Any] = {}
    for key, inner in value.items():
        rows |= _flat(inner, f"{name}.{key}" if name else str(key))
    return rows
