"""The real series that ship with the package, each with its source: small, classic, public."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from sgjax._types import Times, as_times


@dataclass(frozen=True, eq=False)
class Dataset:
    """A real record: `values` at the times `ts`, one column per channel, and where it is from."""

    name: str
    ts: Times
    values: Float[np.ndarray, "times channels"]
    channels: tuple[str, ...]
    unit: str
    """Of the values."""
    source: str
    """Author, year and place of publication."""
    notes: str = ""
    time_unit: str = ""

    def __post_init__(self):
        expected = (len(self.ts), len(self.channels))
        if self.values.shape != expected:
            raise ValueError(
                f"The values of {self.name!r} have shape {self.values.shape}; with these times and "
                f"channels it should be {expected}."
            )


def _columns(*channels: list[float]) -> Float[np.ndarray, "times channels"]:
    values = np.stack([np.asarray(channel, np.float64) for channel in channels], axis=1)
    values.setflags(write=False)
    return values


influenza_1978 = Dataset(
    name="influenza_1978",
    ts=as_times(range(1, 15)),
    values=_columns([3, 8, 26, 76, 225, 298, 258, 233, 189, 128, 68, 29, 14, 4]),
    channels=("infectious",),
    unit="boys",
    source=(
        "Anonymous (1978). Influenza in a boarding school. British Medical Journal 1: 587 "
        "(4 March); see also Murray (1989), Mathematical Biology."
    ),
    notes=(
        "Boys confined to bed in an English boarding school of 763 boys, from 22 January 1978 "
        "(day 1); one infectious boy on day 0 is customary. Each number is a prevalence, so a boy "
        "counts on each of his days in bed; 512 fell ill in all."
    ),
    time_unit="days",
)
"""Influenza in a boarding school: one wave of two weeks."""

lynx_hare_1900 = Dataset(
    name="lynx_hare_1900",
    ts=as_times(range(21)),
    values=_columns(
        # One row per ten years.
        [
            *[30.0, 47.2, 70.2, 77.4, 36.3, 20.6, 18.1, 21.4, 22.0, 25.4],
            *[27.1, 40.3, 57.0, 76.6, 52.3, 19.5, 11.2, 7.6, 14.6, 16.2],
            24.7,
        ],
        [
            *[4.0, 6.1, 9.8, 35.2, 59.4, 41.7, 19.0, 13.0, 8.3, 9.1],
            *[7.4, 8.0, 12.3, 19.5, 45.7, 51.1, 29.7, 15.8, 9.7, 10.1],
            8.6,
        ],
    ),
    channels=("hare", "lynx"),
    unit="thousand pelts",
    source=(
        "Hewitt (1921), The Conservation of the Wild Life of Canada; as tabulated by Howard "
        "(2009), Modeling Basics, lecture notes, Texas A&M University."
    ),
    notes=(
        "Pelts of snowshoe hare and Canada lynx bought by the Hudson's Bay Company, 1900 (time 0) "
        "to 1920. Pelts are a proxy: they follow the trappers' effort as well as the animals."
    ),
    time_unit="years",
)
"""Lynx and snowshoe hare: two cycles of about ten years."""

united_states_1790 = Dataset(
    name="united_states_1790",
    ts=as_times(range(0, 170, 10)),
    values=_columns(
        [
            *[3.929214, 5.308483, 7.239881, 9.638453, 12.866020, 17.069453],
            *[23.191876, 31.443321, 38.558371, 50.155783, 62.947714, 75.994575],
            *[91.972266, 105.710620, 122.775046, 131.669275, 150.697361],
        ]
    ),
    channels=("population",),
    unit="million persons",
    source=(
        "United States censuses, to 1910 as in Pearl and Reed (1920), Proceedings of the National "
        "Academy of Sciences 6: 275-288; from 1920 Historical Statistics of the United States "
        "(Bureau of the Census, 1975), series A."
    ),
    notes=(
        "Enumerated population of the contiguous states, 1790 (time 0) to 1950. Pearl and Reed "
        "fitted a logistic curve to the years to 1910, with an upper limit of 197 million: the "
        "later years are a forecast to be judged. The census of 1870 missed people in the South; "
        "its later correction is 39.818449."
    ),
    time_unit="years",
)
"""Population of the United States: a century and a half of logistic growth."""

theophylline_1994 = Dataset(
    name="theophylline_1994",
    ts=as_times([0, 0.25, 0.57, 1.12, 2.02, 3.82, 5.1, 7.03, 9.05, 12.12, 24.37]),
    values=_columns([0.74, 2.84, 6.57, 10.5, 9.66, 8.58, 8.36, 7.47, 6.89, 5.94, 3.28]),
    channels=("concentration",),
    unit="mg/L",
    source=(
        "Boeckmann, Sheiner and Beal (1994), NONMEM Users Guide: Part V, University of "
        "California, San Francisco; the study is by R. Upton."
    ),
    notes=(
        "Serum theophylline of subject 1 (79.6 kg) after an oral dose of 4.02 mg/kg at time 0. "
        "The first sample is not zero: the drug was there before the dose."
    ),
    time_unit="hours",
)
"""Theophylline in one person: absorption and elimination of one oral dose."""
