"""`python -m sgjax.references NAME [PATH]`: computes the reference of a ready-made study.

Prints it beside the stored one; writes the JSON file where a path is given. Minutes, in float64.
"""

import argparse
import importlib
import json
import pathlib

import jax
import jax.numpy as jnp

from sgjax.observations import Observed
from sgjax.references.stored import compute_reference, load_reference


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m sgjax.references", description=__doc__)
    parser.add_argument("name", help="a ready-made study with at most 4 unknowns per mechanism")
    parser.add_argument("path", nargs="?", type=pathlib.Path, help="where to write the JSON file")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    # Studies come after this package in the order of imports; only this command needs them.
    ready = importlib.import_module("sgjax.studies").READY_MADE[options.name]
    values = jnp.asarray(ready.data.values, float)
    observed = Observed(
        jnp.asarray(ready.data.ts, float), jnp.nan_to_num(values), jnp.isfinite(values)
    )
    others = {
        text: ready.study(**{parameter: prior})
        for parameter, priors in ready.alternatives.items()
        for text, prior in priors.items()
    }
    reference = compute_reference(ready.study(), observed, others)
    if options.path:
        options.path.write_text(json.dumps(rounded(reference), indent=1) + "\n")
    show(reference, options.name)


def rounded(value):
    """Eight significant digits, enough for every comparison and kind to the reader."""
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    return float(f"{value:.8g}") if isinstance(value, float) else value


def show(reference: dict, name: str) -> None:
    """A table of the reference, with the largest difference from the stored one, in its sd."""
    for text, part in {"default": reference, **reference["other_priors"]}.items():
        print(text)
        for mechanism, evidence in part["log_evidence"].items():
            probability = part["mechanisms"][mechanism]
            print(f"  {mechanism}: log evidence {evidence:.5f}, probability {probability:.5f}")
            for quantity, row in part["estimates"][mechanism].items():
                numbers = "  ".join(f"{entry} {number:8.5f}" for entry, number in row.items())
                print(f"    {quantity:20s}{numbers}")
    stored = load_reference(name)
    difference = max(
        abs(number - stored["estimates"][mechanism][quantity][entry]) / row["sd"]
        for mechanism, estimates in reference["estimates"].items()
        for quantity, row in estimates.items()
        for entry, number in row.items()
    )
    print(f"largest difference from the stored reference: {difference:.1e} sd")


if __name__ == "__main__":
    main()
