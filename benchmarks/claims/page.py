"""One page of what was claimed and what was measured: `results -> Markdown and pictures`."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.claims import convergence, mismatch, model_selection, unobservables
from benchmarks.claims.tables import table
from benchmarks.record import kept

LIMITS = """## What these figures are not

- **Whose statements.** That such a predictor can be read as an amortised Bayes predictor, that
  empirical risk minimisation tends to the best predictor *of the synthetic world*, that mismatch
  costs a bounded risk, that unobserved quantities can be learned, that predictions can be
  attributed consistently, and half of AIC's error in telling mechanisms apart: statements of the
  abstracts of arXiv 2509.18990. The exact forms tested here (which excess each loss has, the
  constants of the bound, contraction, the negative controls, what an embedding must keep for
  attribution) were derived for this project or are standard; each file says so.
- **Whose experiments.** None of these is the paper's experiment: its simulators, priors, sample
  sizes and embedding are not public. Each world here has a Bayes answer that can be computed, and
  the experiment is held against that.
- **What no test can say.** The total variation between simulated and real data cannot be
  certified from above without labels: data may look alike and mean something else. A small
  p-value says that the simulator is wrong somewhere; a large one does not say that it is right.
"""


@dataclasses.dataclass(frozen=True)
class Claim:
    """One part of the page."""

    title: str
    says: str
    """What is claimed, and how it is tested."""
    command: str
    name: str
    """Of its stored result."""
    section: Callable[[Mapping[str, Any]], str]
    picture: Callable[[Any], Figure] | None = None


def attribution(result: Mapping[str, Any]) -> str:
    """Distances of clouds from exact posteriors, by simulations searched."""
    rows = [row for row in result["rows"] if row["method"] in ("kernel", "regression")]
    sizes = sorted({row["num_simulations"] for row in rows})
    found: dict[tuple[str, str, str], dict[int, float]] = {}
    for row in rows:
        kind = row["world"], row["space"], row["method"]
        found.setdefault(kind, {})[row["num_simulations"]] = row["prior_sds"]
    lines = [
        (*kind, *(f"{cells[size]:.3f}" if size in cells else "" for size in sizes))
        for kind, cells in found.items()
    ]
    return table(("world", "space", "method", *(f"{size:.0e}" for size in sizes)), lines)


CLAIMS = (
    Claim(
        "A trained network tends to the Bayes predictor",
        "Excess risk over the exact Bayes predictor against the number of simulations, a separate "
        "run with its own schedule for each.",
        "python -m benchmarks.claims.convergence",
        convergence.NAME,
        convergence.section,
        convergence.picture,
    ),
    Claim(
        "It learns what is never observed, where the data hold it",
        "Growth before its inflection, R0 from early counts, the number exposed, against exact "
        "posteriors and maximum likelihood; and a quantity that no data tell, whose score must "
        "be 0.",
        "python -m benchmarks.claims.unobservables",
        unobservables.NAME,
        unobservables.section,
        unobservables.picture,
    ),
    Claim(
        "Mismatch costs a bounded risk, and some of it shows without labels",
        "Worlds of exactly known total variation against the bound; what distances without "
        "labels see of sixteen shifts; power and false alarms of the tests; remedies.",
        "python -m benchmarks.claims.mismatch",
        mismatch.NAME,
        mismatch.section,
        mismatch.picture,
    ),
    Claim(
        "It tells mechanisms apart as the Bayes factor does",
        "SIR or SEIR from daily counts, against exact Bayes factors, information criteria, and a "
        "likelihood ratio with a tuned threshold, the control: it knows the prior as well.",
        "python -m benchmarks.claims.model_selection",
        model_selection.NAME,
        model_selection.section,
        model_selection.picture,
    ),
    Claim(
        "Its nearest simulations become the posterior",
        "Wasserstein-1 distance (prior sds) of the attributed cloud of one parameter from its "
        "exact posterior, by the number of simulations searched.",
        "python -m benchmarks.attribution_consistency",
        "attribution_consistency",
        attribution,
    ),
)


def write(results: Mapping[str, Mapping[str, Any]], folder: Path) -> Path:
    """Writes `claims.md` and its pictures from results by name; claims without one say so."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = ["# What the theory says, and what was measured\n"]
    for claim in CLAIMS:
        parts += [f"## {claim.title}\n", f"{claim.says} `{claim.command}`\n"]
        result = results.get(claim.name)
        if not result:
            parts.append("Not run yet.\n")
            continue
        parts += [claim.section(result), "", _made(result)]
        if claim.picture is not None:
            file = folder / f"{claim.name}.png"
            claim.picture(result).savefig(file, dpi=110)
            parts.append(f"![{claim.title}]({file.name})\n")
    page = folder / "claims.md"
    page.write_text("\n".join([*parts, LIMITS]), encoding="utf-8")
    return page


def stored() -> dict[str, dict[str, Any]]:
    """All results that are stored."""
    return {claim.name: kept(claim.name) for claim in CLAIMS}


def _made(result: Mapping[str, Any]) -> str:
    """With what a result was made, where it says so."""
    if "date" not in result:
        return ""
    versions = result.get("versions", {})
    told = ", ".join(f"{name} {versions[name]}" for name in ("jax", "diffrax") if name in versions)
    return f"*{result['date']}, commit {result['commit']}, {result['hardware']}, {told}.*\n"
