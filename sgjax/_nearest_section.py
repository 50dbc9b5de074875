"""The section of a report on the nearest simulations, one by one and as a posterior."""

from typing import Any

from sgjax import plots
from sgjax._page import label, number, paragraph, percent, picture, section, table
from sgjax._sections import MEASURE_WORDS, Page, estimate_cells


def neighbours(page: Page) -> str:
    rows = page.analysis.neighbours.table()
    if not rows:
        return ""
    names = list(dict.fromkeys(name for row in rows for name in row["theta"]))
    body = [
        [
            f"{place}. {label(row['mechanism'])}",
            f"{row['id']}",
            number(row["distance"]),
            *(_theta(row["theta"].get(name)) for name in names),
        ]
        for place, row in enumerate(rows, 1)
    ]
    note = (
        "Parameters that truly produced the nearest simulations. Each can be drawn again from its "
        "number. These few show which worlds look like the data."
    )
    header = ("", "its number", "distance", *map(label, names))
    return section(
        "The nearest simulations", table(header, body), paragraph(note, "note"), _attributed(page)
    )


def _attributed(page: Page) -> str:
    """The neighbours as a posterior, beside the network's."""
    attributed, stored = page.analysis.attributed, page.result.get("attributed")
    if attributed is None or not stored:
        return ""
    facts = (
        f"The {stored['k']:,} nearest of them, worth {stored['effective_k']:,.0f} of equal weight, "
        "as a posterior of their own: that many answered best for held-out simulations."
    )
    if stored["method"] == "regression":
        facts += (
            " The nearer count more, and each is moved by what the network says it differs from "
            "the data."
        )
    caption = "Posteriors of the network and of the simulations it deems nearest to the data."
    parts = [
        "<h3>The nearest simulations as a posterior</h3>",
        paragraph(facts),
        picture(plots.plot_attributed(page.analysis, attributed), "Both posteriors", caption),
    ]
    if page.several:
        error = max(stored["mechanisms_error"].values())
        names = list(stored["mechanisms"])
        shares = [percent(stored["mechanisms"][name], 1) for name in names]
        network = [percent((page.result.get("mechanisms") or {}).get(name), 1) for name in names]
        rows = [["Nearest simulations", *shares, f"± {percent(error, 1)}"]]
        rows += [["Network", *network, ""]] if page.identified else []
        parts.append(table(("", *map(label, names), "standard error"), rows))
    for mechanism, rows in stored["estimates"].items():
        body = [estimate_cells(name, row) for name, row in rows.items()]
        title = f"Nearest, within {label(mechanism)}" if page.several else "Nearest"
        parts.append(table((title, *MEASURE_WORDS), body))
    parts += [paragraph(note, "note") for note in stored["notes"]]
    limits = (
        "Where the two differ, the network smooths over what single simulations show, or too few "
        "simulations lie near. Both rest on what the network looks at, and on the prior."
    )
    return "".join([*parts, paragraph(limits, "note")])


def _theta(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_theta(each) for each in value)
    return number(value)
