"""Ready-made studies, one file each, and how a user's own study file is loaded."""

import dataclasses
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpyro.distributions as dist

from sgjax import datasets
from sgjax.datasets import Dataset
from sgjax.studies._presets import Preset as Preset
from sgjax.studies.influenza_1978 import influenza_1978
from sgjax.studies.lynx_hare import lynx_hare
from sgjax.study import Study


class StudyError(Exception):
    """A study cannot be found or loaded; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class ReadyMade:
    """A study with the data it was made for, how long to train, and other priors to try."""

    study: Callable[[], Study]
    summary: str
    data: Dataset
    alternatives: Mapping[str, Mapping[str, dist.Distribution]]
    """By parameter, other priors by the words that describe them."""
    demo: Preset
    full: Preset
    has_reference: bool = False
    """Whether the exact posterior is stored beside the study."""


READY_MADE: dict[str, ReadyMade] = {
    "influenza_1978": ReadyMade(
        influenza_1978,
        "SIR or SEIR? Influenza among 763 boys in an English boarding school, 1978",
        datasets.influenza_1978,
        {
            "sigma": {
                "sigma ~ LogNormal(0, 1)": dist.LogNormal(0.0, 1.0),
                "sigma ~ LogNormal(log 0.5, 0.5)": dist.LogNormal(-0.6931472, 0.5),
            }
        },
        # The demo's rate: 1e-3, 3e-3 and 6e-3 were compared by the held-out score of simulations.
        demo=Preset(num_steps=6_000, batch_size=512, width=128, learning_rate=3e-3),
        full=Preset(num_steps=25_000, batch_size=512),
        has_reference=True,
    ),
    "lynx_hare": ReadyMade(
        lynx_hare,
        "Lotka-Volterra: lynx and hare pelts of the Hudson's Bay Company, 1900 to 1920",
        datasets.lynx_hare_1900,
        {},
        demo=Preset(num_steps=6_000, batch_size=512),
        full=Preset(num_steps=60_000, batch_size=512),
    ),
}


def load_file(path: Path) -> Study:
    """The one `Study` object that a user's Python file makes, preferably named `study`.

    Runs the file. Raises `StudyError` where it fails, or makes none or several.
    """
    specification = importlib.util.spec_from_file_location("user_study", path)
    if specification is None or specification.loader is None or not path.is_file():
        raise StudyError(f"{path} is no Python file.")
    module = importlib.util.module_from_spec(specification)
    sys.path.insert(0, str(path.parent.absolute()))
    try:
        specification.loader.exec_module(module)
    except Exception as error:
        line = _line_in(path, error)
        raise StudyError(f"{path}{line} failed: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    found = {name: value for name, value in vars(module).items() if isinstance(value, Study)}
    if "study" in found:
        return found["study"]
    if len(found) == 1:
        return next(iter(found.values()))
    raise StudyError(
        f"{path} makes {len(found)} Study objects{f' {list(found)}' if found else ''}; "
        "name the one to train `study`."
    )


def _line_in(path: Path, error: Exception) -> str:
    trace, line = error.__traceback__, ""
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename) == path:
            line = f", line {trace.tb_lineno},"
        trace = trace.tb_next
    if isinstance(error, SyntaxError):
        line = f", line {error.lineno},"
    return line
