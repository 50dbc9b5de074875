"""Every claim of the theory, one after another, and one page of what was found.

`python -m benchmarks.claims [--quick]`. Full runs take hours; what they have stored is not computed
again where a benchmark can go on. `--page` alone writes the page from what is stored.
"""

import dataclasses
import tempfile
from pathlib import Path

import tyro

from benchmarks.claims import convergence, mismatch, model_selection, unobservables
from benchmarks.claims.page import CLAIMS, stored, write
from benchmarks.record import RESULTS, lightly_compiled


@dataclasses.dataclass(frozen=True)
class Options:
    """What to run."""

    quick: bool = False
    """Small sizes, under two minutes, a page of their own; nothing is stored."""
    page: bool = False
    """Only write the page from stored results."""
    folder: Path | None = None
    """Where the page goes: by default beside the stored results, or a new folder for `quick`."""


def main(options: Options) -> None:
    """Runs what is asked, then writes the page."""
    if options.page:
        print(write(stored(), options.folder or RESULTS))
        return
    parts = (convergence, unobservables, mismatch, model_selection)
    with lightly_compiled(options.quick):
        results = {part.NAME: part.main(part.Options(quick=options.quick)) for part in parts}
    if options.quick:
        folder = options.folder or Path(tempfile.mkdtemp(prefix="sgjax-claims-"))
        results |= {
            claim.name: stored()[claim.name] for claim in CLAIMS if claim.name not in results
        }
        print(write(results, folder))
    else:
        print(write(stored(), options.folder or RESULTS))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
