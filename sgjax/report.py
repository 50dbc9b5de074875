"""One self-contained HTML page per analysis: `Analysis -> report.html`, in a scientist's order."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sgjax import _sections as sections
from sgjax import plots
from sgjax._nearest_section import neighbours
from sgjax._page import (
    DASH,
    capital,
    document,
    escape,
    finite,
    label,
    listed,
    paragraph,
    percent,
    probability,
    rounded,
    spread,
)
from sgjax._sections import Page
from sgjax.analysis import Analysis
from sgjax.checkpoint import write_json
from sgjax.diagnostics import Calibration
from sgjax.predictors import find_task
from sgjax.tasks import Estimate


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
    page = Page(analysis, calibration, curve, settings)
    nearest = plots.plot_neighbours(
        analysis.study, analysis.observed, analysis.neighbours, page.units
    )
    title = label(page.result.get("study") or analysis.study.name)
    title = capital(title)
    body = "\n".join(
        (
            _head(page, title),
            sections.data(nearest),
            sections.estimates(page),
            sections.mechanisms(page),
            sections.forecast(page),
            sections.mismatch(page),
            sections.prior_predictive(page),
            neighbours(page),
            sections.calibration(page),
            sections.training(page),
            sections.averaged(page),
            sections.provenance(page),
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


def write_result(folder: Path, result: Mapping[str, Any], name: str = "result.json") -> Path:
    """Writes `result.json`; numbers that are not finite become null."""
    path = folder / name
    write_json(path, _plain(result))
    return path


def verdict(analysis: Analysis) -> str:
    """The finding in a few plain sentences."""
    page = Page(analysis, None, [], {})
    sentences = [_mechanism_words(page), _quantity_words(page)]
    # A warning comes first, so that nobody reads numbers that mean nothing.
    place = 0 if analysis.mismatch.p_value < 0.01 else len(sentences)
    sentences.insert(place, _mismatch_words(page))
    return " ".join(sentence for sentence in sentences if sentence)


def _mechanism_words(page: Page) -> str:
    if not page.several:
        return f"One mechanism, {label(page.mechanism[0])}, is fitted; no other was considered."
    if not page.identified:
        return "The study does not ask which of its mechanisms is at work."
    best, share = page.mechanism
    names = listed([label(name) for name in page.analysis.study.mechanisms])
    before = (page.result.get("mechanisms_prior") or {}).get(best)
    verb = "point clearly to" if share > 0.95 else "favour" if share > 0.75 else "lean towards"
    text = f"Among {names} only, the data {verb} {label(best)}: its probability is {percent(share)}"
    text += f", from {percent(before)} before the data" if before is not None else ""
    exact = (page.result.get("reference_mechanisms") or {}).get(best)
    text += f" (exact reference: {percent(exact)})." if exact is not None else "."
    return text + (" The data alone do not settle it." if share <= 0.75 else "")


def _quantity_words(page: Page) -> str:
    """The two quantities that matter most, under the two likeliest mechanisms."""
    estimates = page.result.get("estimates") or {}
    shares = page.result.get("mechanisms") or {}
    order = sorted(estimates, key=lambda name: -(shares.get(name) or 0.0))[:2]
    parts = []
    for name in _headline_quantities(page)[:2]:
        clauses = []
        for mechanism in order:
            row = (estimates.get(mechanism) or {}).get(name)
            if row and finite(row.get("q50")):
                texts = rounded(row, spread(row))
                span = f"90 % interval {texts['q05']} to {texts['q95']}"
                under = f" under {label(mechanism)}" if page.several else ""
                clauses.append(f"{texts['q50']} ({span}){under}")
        if clauses:
            parts.append(f"{label(name)} {' and '.join(clauses)}")
    return f"Posterior medians: {'; '.join(parts)}." if parts else ""


def _mismatch_words(page: Page) -> str:
    mismatch = page.analysis.mismatch
    return f"{mismatch.verdict.rstrip('.')} (p = {probability(mismatch.p_value)})."


def _headline_quantities(page: Page) -> list[str]:
    """Derived quantities first, and of these R0: they are why one estimates parameters."""
    task = find_task(page.analysis.study.task, Estimate)
    derived = list(task.derived) if task is not None else []
    estimates = page.result.get("estimates") or {}
    names = list(dict.fromkeys(name for rows in estimates.values() for name in rows))
    return sorted(names, key=lambda name: (name != "R0", name not in derived, names.index(name)))


def _head(page: Page, title: str) -> str:
    p = page.analysis.mismatch.p_value
    tone = "bad" if p < 0.01 else "care" if p < 0.05 else "good"
    tiles = []
    if page.identified:
        best, share = page.mechanism
        tiles.append(
            (f"Probability of {label(best)}", percent(share), "among these mechanisms only")
        )
    estimates = (page.result.get("estimates") or {}).get(page.mechanism[0]) or {}
    name = next((name for name in _headline_quantities(page) if name in estimates), None)
    if name is not None:
        row = estimates[name]
        texts = rounded(row, spread(row))
        under = f" under {label(page.mechanism[0])}" if page.several else ""
        span = f"90 % interval {texts.get('q05', DASH)} to {texts.get('q95', DASH)}"
        tiles.append((label(name) + under, texts.get("q50", DASH), span))
    tiles.append(
        ("How unusual the data are", f"p = {probability(p)}", "among held-out simulations")
    )
    cards = "".join(
        f"<div><dt>{escape(term)}</dt><dd>{escape(value)}<small>{escape(note)}</small></dd></div>"
        for term, value, note in tiles
    )
    return (
        f'<header><p class="kind">Analysis of one series by a simulation-grounded network</p>'
        f"<h1>{escape(title)}</h1>{paragraph(verdict(page.analysis), f'lead {tone}')}"
        f'<dl class="tiles">{cards}</dl></header>'
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        value = np.asarray(value).tolist()
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
