"""One self-contained HTML page per analysis: `Analysis -> report.html`, in a scientist's order."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sgjax import datasets, plots
from sgjax._drawing import Units
from sgjax._page import (
    DASH,
    Cell,
    details,
    document,
    escape,
    label,
    number,
    paragraph,
    percent,
    picture,
    probability,
    rounded,
    section,
    table,
)
from sgjax.analysis import Analysis
from sgjax.checkpoint import write_json
from sgjax.diagnostics import Calibration
from sgjax.predictors import find_task
from sgjax.tasks import Estimate

MEASURES = ("mean", "sd", "q05", "q50", "q95")
MEASURE_WORDS = ("mean", "sd", "5 %", "50 %", "95 %")


@dataclasses.dataclass(frozen=True)
class _Page:
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
        """From the data's record, else of the dataset that shares the study's name."""
        data = self.result.get("data") or {}
        known = getattr(datasets, str(self.result.get("study")), None)
        stored = known if isinstance(known, datasets.Dataset) else None
        return Units(
            str(data.get("time_unit") or (stored.time_unit if stored else "")),
            str(data.get("unit") or (stored.unit if stored else "")),
        )

    @property
    def mechanism(self) -> tuple[str, float]:
        """The most probable one."""
        shares = self.result.get("mechanisms") or self.analysis.study.mechanism_probabilities
        best = max(shares, key=lambda name: shares[name] if _finite(shares[name]) else -1.0)
        return best, shares[best]

    @property
    def several(self) -> bool:
        return len(self.analysis.study.mechanisms) > 1


def write_report(
    folder: Path,
    analysis: Analysis,
    *,
    calibration: Calibration | None,
    curve: list[dict],
    settings: dict[str, Any],
) -> Path:
    """Writes `report.html`, and `figure.png` for a README, into a folder; each whole or not at all.

    The page holds its pictures and needs nothing from outside. What `analysis.result` lacks, the
    page leaves out.
    """
    page = _Page(analysis, calibration, curve, settings)
    nearest = plots.plot_neighbours(
        analysis.study, analysis.observed, analysis.neighbours, page.units
    )
    title = label(page.result.get("study") or analysis.study.name)
    title = title[:1].upper() + title[1:]
    body = "\n".join(
        (
            _head(page, title),
            _data(nearest),
            _estimates(page),
            _mechanisms(page),
            _forecast(page),
            _mismatch(page),
            _prior_predictive(page),
            _neighbours(page),
            _calibration(page),
            _training(page),
            _averaged(page),
            _provenance(page),
        )
    )
    path = folder / "report.html"
    partial = path.with_name(path.name + ".partial")
    partial.write_text(document(title, body), encoding="utf-8")
    partial.replace(path)
    image = folder / "figure.png"
    partial = image.with_name(image.name + ".partial")
    nearest.savefig(partial, format="png", dpi=200)
    partial.replace(image)
    return path


def write_result(folder: Path, result: Mapping[str, Any]) -> Path:
    """Writes `result.json`; numbers that are not finite become null."""
    path = folder / "result.json"
    write_json(path, _plain(result))
    return path


def verdict(analysis: Analysis) -> str:
    """The finding in a few plain sentences."""
    page = _Page(analysis, None, [], {})
    sentences = [_mechanism_words(page), *_quantity_words(page), _mismatch_words(page)]
    return " ".join(sentence for sentence in sentences if sentence)


def _mechanism_words(page: _Page) -> str:
    if not page.several:
        return f"One mechanism, {label(page.mechanism[0])}, is fitted; no other was considered."
    best, share = page.mechanism
    names = _list([label(name) for name in page.analysis.study.mechanisms])
    before = (page.result.get("mechanisms_prior") or {}).get(best)
    verb = "point clearly to" if share > 0.95 else "favour" if share > 0.75 else "lean towards"
    text = f"Among {names} only, the data {verb} {label(best)}: its probability is {percent(share)}"
    text += f", from {percent(before)} before the data" if before is not None else ""
    exact = (page.result.get("reference_mechanisms") or {}).get(best)
    text += f" (exact reference: {percent(exact)})." if exact is not None else "."
    return text + (" The data alone do not settle it." if share <= 0.75 else "")


def _quantity_words(page: _Page) -> list[str]:
    """One sentence for each of the two quantities that matter most, under the likeliest two."""
    estimates = page.result.get("estimates") or {}
    shares = page.result.get("mechanisms") or {}
    order = sorted(estimates, key=lambda name: -(shares.get(name) or 0.0))[:2]
    sentences = []
    for name in _headline_quantities(page)[:2]:
        clauses = []
        for mechanism in order:
            row = (estimates.get(mechanism) or {}).get(name)
            if row and _finite(row.get("q50")):
                texts = rounded(row, _spread(row))
                span = f"90 % interval {texts['q05']} to {texts['q95']}"
                under = f" under {label(mechanism)}" if page.several else ""
                clauses.append(f"{texts['q50']} ({span}){under}")
        if clauses:
            sentences.append(f"{_capital(label(name))} is {' and '.join(clauses)}.")
    return sentences


def _mismatch_words(page: _Page) -> str:
    mismatch = page.analysis.mismatch
    return f"{mismatch.verdict.rstrip('.')} (p = {probability(mismatch.p_value)})."


def _headline_quantities(page: _Page) -> list[str]:
    """Derived quantities first, and of these R0: they are why one estimates parameters."""
    task = find_task(page.analysis.study.task, Estimate)
    derived = list(task.derived) if task is not None else []
    estimates = page.result.get("estimates") or {}
    names = list(dict.fromkeys(name for rows in estimates.values() for name in rows))
    return sorted(names, key=lambda name: (name != "R0", name not in derived, names.index(name)))


def _head(page: _Page, title: str) -> str:
    p = page.analysis.mismatch.p_value
    tone = "bad" if p < 0.01 else "care" if p < 0.05 else "good"
    tiles = []
    if page.several:
        best, share = page.mechanism
        tiles.append((f"Probability of {label(best)}", percent(share), "among these only"))
    estimates = (page.result.get("estimates") or {}).get(page.mechanism[0]) or {}
    name = next((name for name in _headline_quantities(page) if name in estimates), None)
    if name is not None:
        row = estimates[name]
        texts = rounded(row, _spread(row))
        under = f" under {label(page.mechanism[0])}" if page.several else ""
        span = f"90 % interval {texts.get('q05', DASH)} to {texts.get('q95', DASH)}"
        tiles.append((label(name) + under, texts.get("q50", DASH), span))
    tiles.append(("How unusual the data are", f"p = {probability(p)}", "among simulations"))
    cards = "".join(
        f"<div><dt>{escape(term)}</dt><dd>{escape(value)}<small>{escape(note)}</small></dd></div>"
        for term, value, note in tiles
    )
    return (
        f'<header><p class="kind">Analysis of one series by a simulation-grounded network</p>'
        f"<h1>{escape(title)}</h1>{paragraph(verdict(page.analysis), f'lead {tone}')}"
        f'<dl class="tiles">{cards}</dl></header>'
    )


def _data(figure: Any) -> str:
    caption = (
        "The data and the simulations that the network deems most like them, as an instrument "
        "would have recorded them, coloured by mechanism. The nearer, the stronger the line."
    )
    return section(
        "The data and the simulations nearest to them",
        picture(figure, "The data with the nearest simulations drawn over them", caption),
    )


def _estimates(page: _Page) -> str:
    estimates = page.result.get("estimates") or {}
    exact = page.result.get("reference") or {}
    if not any(estimates.values()):
        return ""
    drawn = plots.plot_estimates(page.analysis)
    caption = "Marginal posteriors within each mechanism, assuming that mechanism is true."
    parts = [picture(drawn, "Posterior densities by quantity and mechanism", caption)]
    for mechanism, rows in estimates.items():
        reference = exact.get(mechanism) or {}
        body = []
        for name, row in rows.items():
            body.append(_estimate_cells(label(name), row))
            if reference.get(name):
                body.append(_estimate_cells("", reference[name], "exact reference"))
        title = f"Within {label(mechanism)}" if page.several else ""
        parts.append(table((title, *MEASURE_WORDS), body))
    return section("Estimates", *parts, _reference_note(exact), _latent(page))


def _estimate_cells(name: str, row: Mapping[str, Any], note: str = "") -> list[str | Cell]:
    texts = rounded({key: row.get(key) for key in MEASURES}, _spread(row))
    return [Cell(name, note), *(texts[key] for key in MEASURES)]


def _reference_note(exact: Mapping[str, Any]) -> str:
    if not any(exact.values()):
        return ""
    return paragraph(
        "The exact reference is computed from the likelihood, without a network; the nearer the "
        "two rows, the better the network.",
        "note",
    )


def _latent(page: _Page) -> str:
    rows = page.result.get("latent") or {}
    keys = ("q05", "q50", "q95")
    body = []
    for name, row in rows.items():
        texts = rounded({key: row.get(key) for key in keys}, _spread(row))
        body.append([label(name), *(texts[key] for key in keys)])
    words = "Functions of the noiseless course, over all mechanisms"
    return table(("", "5 %", "50 %", "95 %"), body, words) if body else ""


def _mechanisms(page: _Page) -> str:
    result = page.result
    if not page.several or not result.get("mechanisms"):
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


def _sensitivity(page: _Page, names: Sequence[str]) -> str:
    body = []
    for row in page.result.get("sensitivity") or []:
        sizes = [
            size for size in (row.get("effective_sample_size") or {}).values() if _finite(size)
        ]
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


def _forecast(page: _Page) -> str:
    if not page.result.get("forecast"):
        return ""
    caption = "The data and what the network expects next, averaged over mechanisms."
    drawn = plots.plot_forecast(page.analysis, page.units)
    return section("Forecast", picture(drawn, "Fan chart of the forecast", caption))


def _mismatch(page: _Page) -> str:
    mismatch, stored = page.analysis.mismatch, page.result.get("mismatch") or {}
    p = mismatch.p_value
    tone = "bad" if p < 0.01 else "care" if p < 0.05 else "good"
    searched = f" of {stored['searched']:,}" if _finite(stored.get("searched")) else ""
    count = int(np.size(mismatch.held_out_distances))
    facts = (
        f"The mean distance from the data to their {len(mismatch.neighbours.ids)} nearest "
        f"simulations{searched} is {number(mismatch.distance)}. Of {count:,} held-out "
        f"simulations searched in the same way, {percent(p, 1)} lie at least as far from theirs "
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
    if not any(_finite(p) for p in values.values()):
        return ""
    body = [[label(mechanism), probability(p)] for mechanism, p in values.items()]
    note = (
        "Had the mechanism, fitted to the data, produced them: the probability of data no likelier "
        "than these. Near 0, the mechanism does not reproduce the data; values near 0.5 are usual."
    )
    return table(("Posterior predictive check", "p"), body) + paragraph(note, "note")


def _prior_predictive(page: _Page) -> str:
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


def _neighbours(page: _Page) -> str:
    rows = page.analysis.neighbours.table()
    if not rows:
        return ""
    names = list(dict.fromkeys(name for row in rows for name in row["theta"]))
    body = [
        [
            Cell(f"{place}", f"no. {row['id']}"),
            label(row["mechanism"]),
            number(row["distance"]),
            *(_theta(row["theta"].get(name)) for name in names),
        ]
        for place, row in enumerate(rows, 1)
    ]
    note = (
        "Parameters that truly produced the nearest simulations. Each can be drawn again from its "
        "number. They show which worlds look like the data; they are not a posterior sample."
    )
    header = ("Nearest", "mechanism", "distance", *map(label, names))
    return section("The nearest simulations", table(header, body), paragraph(note, "note"))


def _calibration(page: _Page) -> str:
    stored = page.result.get("calibration") or (
        page.calibration.summary() if page.calibration else {}
    )
    parts = []
    if page.calibration is not None and (page.calibration.ranks or page.several):
        caption = (
            "Grey bands hold the whole curve or histogram of a right posterior with 95 % "
            "probability. Below zero, intervals are too narrow; above, too wide."
        )
        drawn = plots.plot_calibration(page.calibration)
        parts.append(picture(drawn, "Coverage, reliability and rank histograms", caption))
    body = []
    for name, row in stored.items():
        error, count = row.get("standard_error"), row.get("num_simulations")
        terciles = list(row.get("coverage_90_by_sd_tercile") or [None] * 3)
        body.append(
            [
                label(name),
                percent(row.get("coverage_50"), 1),
                _judged(row.get("coverage_90"), error),
                f"± {percent(error, 1)}",
                *(_judged(share, error * 3**0.5 if _finite(error) else None) for share in terciles),
                f"{count:,}" if _finite(count) else DASH,
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


def _judged(share: Any, error: Any) -> Cell:
    off = _finite(share) and _finite(error) and abs(share - 0.9) > 3 * error
    return Cell(percent(share, 1), strong=off)


def _training(page: _Page) -> str:
    parts = []
    if page.curve:
        drawn = plots.plot_training(page.curve)
        caption = "Every simulation is fresh, so this is a loss on unseen data. Lower is better."
        parts.append(picture(drawn, "Training loss against simulations", caption))
    row = page.result.get("training") or {}
    texts = (
        ("Simulations", number(row.get("simulations"), 3), row.get("simulations")),
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


def _averaged(page: _Page) -> str:
    rows = page.result.get("model_averaged") or {}
    if not rows:
        return ""
    note = (
        "Averaged over the mechanisms by their probabilities. A parameter may mean different "
        "things in different mechanisms: prefer the estimates within each, above."
    )
    body = [_estimate_cells(label(name), row) for name, row in rows.items()]
    return section("Averaged over mechanisms", paragraph(note), table(("", *MEASURE_WORDS), body))


def _provenance(page: _Page) -> str:
    result = page.result
    facts = {"seed": result.get("seed"), "hardware": result.get("hardware")}
    groups = {
        "Seed and hardware": {key: value for key, value in facts.items() if value is not None},
        "Settings": page.settings,
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


def _theta(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_theta(each) for each in value)
    return number(value)


def _spread(row: Mapping[str, Any]) -> float | None:
    """The scale that decides decimals; quantiles first, since heavy tails inflate an sd."""
    if _finite(row.get("q05")) and _finite(row.get("q95")) and row["q95"] > row["q05"]:
        return (row["q95"] - row["q05"]) / 3.3
    return row.get("sd")


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _list(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        value = np.asarray(value).tolist()
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
