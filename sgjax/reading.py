"""Reads the user's data: `CSV file, study -> Observed`. Every fault names file, row and column."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from sgjax.observations import AbstractNoise, Chain, Observed
from sgjax.study import Study

TIME_COLUMNS = ("t", "ts", "time", "times", "day", "days", "week", "weeks", "year", "years")
"""Headers (in any case) that are taken for the time; other unknown columns are refused."""

MISSING = ("", "na", "nan", "null", "none", "-")
"""Cells (in any case) that mean a missing value."""


LARGEST = 2**24
"""Characters of a file; more is no series, and might never end."""


class DataError(ValueError):
    """A data file is not what the study needs; the message says where and what to do."""


def read_csv(path: Path, study: Study) -> Observed:
    """A record of one series from a CSV file with a header.

    One column per channel, under its name (a single value column serves a single channel whatever
    its name), and optionally one of times. Without times the rows are the study's times in order;
    with them, times of the study that have no row are missing. Empty cells are missing.
    """
    header, rows = _rows(path)
    time_column, columns = _columns(path, header, study)
    expected = study.context_ts
    values = np.full((expected.size, len(columns)), np.nan)
    if time_column is None and len(rows) != expected.size:
        fault = "too short" if len(rows) < expected.size else "too long"
        raise DataError(
            f"{path} is {fault}: it has {len(rows)} rows, the study {study.name} sees "
            f"{expected.size} times ({expected[0]:g} to {expected[-1]:g}). Give one row for each, "
            "with empty cells where a value is missing, or a column of times named `t`."
        )
    seen: dict[int, int] = {}
    for position, (line, cells) in enumerate(rows):
        place = position
        if time_column is not None:
            place = _place(path, line, header[time_column], cells[time_column], expected)
            if place in seen:
                raise DataError(
                    f"{path}, row {line}: time {expected[place]:g} stands in row {seen[place]} too."
                )
            seen[place] = line
        for channel, column in enumerate(columns):
            values[place, channel] = _value(path, line, header[column], cells[column], study)
    if np.isnan(values).all():
        raise DataError(f"{path} holds no value at the study's times.")
    mask = ~np.isnan(values)
    ts = jnp.asarray(expected, jnp.float32)
    return Observed(ts, jnp.asarray(np.where(mask, values, 0), jnp.float32), jnp.asarray(mask))


def _rows(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            text = file.read(LARGEST + 1)
        if len(text) > LARGEST:
            raise DataError(f"{path} has more than {LARGEST:,} characters: it is no single series.")
        reader = csv.reader(io.StringIO(text, newline=""))
        table = [(line, row) for line, row in enumerate(reader, start=1) if any(row)]
    except FileNotFoundError:
        raise DataError(f"There is no file {path}.") from None
    except IsADirectoryError:
        raise DataError(f"{path} is a folder; give a CSV file.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a CSV text file in UTF-8: {error}.") from None
    if not table:
        raise DataError(f"{path} is empty.")
    header = [name.strip() for name in table[0][1]]
    if all(_number(name) is not None for name in header):
        raise DataError(f"{path}, row 1: a header with the names of the columns is missing.")
    if len({name.lower() for name in header}) != len(header):
        raise DataError(f"{path}, row 1: two columns have the same name: {_listed(header)}.")
    for line, row in table[1:]:
        if len(row) != len(header):
            raise DataError(
                f"{path}, row {line}: {len(row)} cells, but the header has {len(header)}."
            )
    return header, table[1:]


def _columns(path: Path, header: list[str], study: Study) -> tuple[int | None, list[int]]:
    lower = [name.lower() for name in header]
    channels = [channel.lower() for channel in study.channels]
    # A channel may bear a name like "time"; it is a channel first.
    times = [i for i, name in enumerate(lower) if name in TIME_COLUMNS and name not in channels]
    if len(times) > 1:
        raise DataError(
            f"{path}: more than one column of times: {_listed([header[i] for i in times])}."
        )
    others = [i for i in range(len(header)) if i not in times]
    if all(channel in lower for channel in channels):
        surplus = [header[i] for i in others if lower[i] not in channels]
        columns = [lower.index(channel) for channel in channels]
    elif len(channels) == len(others) == 1:
        surplus, columns = [], others
    else:
        raise DataError(
            f"{path}: the study {study.name} needs the columns {list(study.channels)} "
            f"(and, if you like, `t`); the file has {_listed(header)}."
        )
    if surplus:
        raise DataError(
            f"{path}: the columns {_listed(surplus)} are none of the study's "
            f"{list(study.channels)}; remove them."
        )
    return (times[0] if times else None), columns


def _place(path: Path, line: int, column: str, cell: str, expected: np.ndarray) -> int:
    where = f"{path}, row {line}, column {_short(column)}"
    time = _number(cell)
    if time is None:
        raise DataError(f"{where}: '{_short(cell)}' is not a time.")
    place = int(np.argmin(np.abs(expected - time)))
    gap = np.diff(expected).min() if expected.size > 1 else 1.0
    if not abs(expected[place] - time) <= 1e-4 * gap:
        raise DataError(
            f"{where}: {_short(cell)} is none of the study's {expected.size} times "
            f"({expected[0]:g} to {expected[-1]:g}); the nearest is {expected[place]:g}."
        )
    return place


def _value(path: Path, line: int, column: str, cell: str, study: Study) -> float:
    where = f"{path}, row {line}, column {_short(column)}"
    if cell.strip().lower() in MISSING:
        return math.nan
    value = _number(cell)
    if value is None:
        raise DataError(f"{where}: '{_short(cell)}' is not a number; leave a missing value empty.")
    if value < lowest_value(study) or not abs(value) < float(np.finfo(np.float32).max):
        raise DataError(
            f"{where}: {_short(cell)} is impossible under {study.name}, whose values are finite "
            f"and at least {lowest_value(study):g}."
        )
    return value


def lowest_value(study: Study) -> float:
    """The least value that the study's noise can produce."""
    observation = study.observation
    stages = observation.stages if isinstance(observation, Chain) else (observation,)
    noises = [stage for stage in stages if isinstance(stage, AbstractNoise)]
    return noises[-1].lowest if noises else -math.inf


def _number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    # Python reads 1_000 as a number; in a table it is a slip.
    return None if math.isnan(value) or "_" in cell else value


def _short(text: str) -> str:
    """A cell or a name for a message: in one line, and not too long."""
    shown = repr(text.strip())[1:-1]
    return shown if len(shown) <= 40 else f"{shown[:37]}..."


def _listed(names: Sequence[str], most: int = 6) -> str:
    shown = ", ".join(f"'{_short(name)}'" for name in names[:most])
    return f"[{shown}]" if len(names) <= most else f"[{shown}] and {len(names) - most} more"
