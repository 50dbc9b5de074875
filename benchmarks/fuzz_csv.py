"""Does any file make the reader of data fail other than by its one message?

Valid files are damaged at random, one to six times each: bytes, separators, cells, lines, quotes,
encodings, numbers out of any range, tokens that mean something somewhere. Each must give a record
that is finite and of the study's shape, or a `DataError` of one line that names the file; nothing
else, within a second. `python -m benchmarks.fuzz_csv [--quick]`
"""

import collections
import dataclasses
import re
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import sgjax as sg
from benchmarks.record import finish
from sgjax.reading import DataError, read_csv

SECONDS = 1.0
"""What one file may take."""

LONGEST = 400
"""Characters of a message, the file's name left out."""

TOKENS = [
    "", " ", "nan", "NA", "-", "inf", "-inf", "1e400", "-1e400", "1e-400", "9" * 400, "0x10",
    "1_0", "\uff11\uff12", "\xbd", "1,5", "1.5.2", "+", "--1", "1e", "=1+1", "'1", '"', '"1', "t",
    "T ", "time", "day", "infectious", "prey", "[/red]", "[bold]", "\x00", "\u2028", "\ufeff",
    "\xe9", "{0}", "%s", "True", "1970-01-01", "1 000", "1;2", "1\t2", "3.4028236e38", "1e38",
    "-0", "0.1", "1" + "0" * 5000,
]  # fmt: skip
SEPARATORS = [b",", b";", b"\t", b"|", b" ", b":"]
ENCODINGS = ["utf-16", "utf-32", "latin-1", "utf-8-sig", "utf-7", "cp037", "cp1252"]


@dataclasses.dataclass(frozen=True)
class Options:
    """How much to run."""

    quick: bool = False
    """A few thousand files; seconds."""
    files: int = 100_000
    """How many files."""
    seed: int = 0
    """Decides every file."""


def studies() -> list[tuple[sg.Study, list[bytes]]]:
    """Studies of one and of two channels, each with valid files."""
    one = sg.Study(sg.simulators.SIR(), sg.observations.NegativeBinomial(), sg.Estimate())
    two = sg.Study(
        sg.simulators.LotkaVolterra(ts=range(5)), sg.observations.LogNormal(), sg.Estimate()
    )
    counts = "".join(f"{day},{10 * day}\n" for day in range(1, 15))
    values = "".join(f"{10 * day}\n" for day in range(1, 15))
    animals = "".join(f"{t},{t + 1}.5,{t + 2}\n" for t in range(5))
    return [
        (one, [f"day,infectious\n{counts}".encode(), f"cases\n{values}".encode()]),
        (two, [f"t,prey,predator\n{animals}".encode(), f"predator,time,prey\n{animals}".encode()]),
    ]


def damaged(generator: np.random.Generator, text: bytes) -> bytes:
    """A file after one to six mutations."""
    for _ in range(generator.integers(1, 7)):
        text = MUTATIONS[generator.integers(len(MUTATIONS))](generator, text)
    return text


def _bytes(generator: np.random.Generator, text: bytes) -> bytes:
    data = bytearray(text)
    for _ in range(min(len(data), generator.integers(1, 4))):
        data[generator.integers(len(data))] = generator.integers(256)
    return bytes(data)


def _insert(generator: np.random.Generator, text: bytes) -> bytes:
    place = generator.integers(len(text) + 1)
    return text[:place] + generator.bytes(int(generator.integers(1, 6))) + text[place:]


def _cut(generator: np.random.Generator, text: bytes) -> bytes:
    first, last = sorted(generator.integers(len(text) + 1, size=2))
    return text[:first] + text[last:] if generator.random() < 0.8 else text[first:last]


def _cell(generator: np.random.Generator, text: bytes) -> bytes:
    parts = re.split(rb"([,\n])", text)
    parts[2 * generator.integers((len(parts) + 1) // 2)] = _token(generator)
    return b"".join(parts)


def _lines(generator: np.random.Generator, text: bytes) -> bytes:
    lines = text.split(b"\n")
    one, other = generator.integers(len(lines), size=2)
    match generator.integers(4):
        case 0:
            lines[one], lines[other] = lines[other], lines[one]
        case 1:
            lines.insert(one, lines[other])
        case 2:
            del lines[one]
        case _:
            lines[one] += b"," + _token(generator)
    return b"\n".join(lines)


def _separators(generator: np.random.Generator, text: bytes) -> bytes:
    old, new = generator.choice(SEPARATORS, 2)
    count = -1 if generator.random() < 0.5 else int(generator.integers(1, 4))
    return text.replace(bytes(old), bytes(new), count)


def _endings(generator: np.random.Generator, text: bytes) -> bytes:
    endings = [b"\r\n", b"\r", b"\n\n", b"\r\r\n", b"\x0b", b"\x85", b"\x00\n"]
    return text.replace(b"\n", endings[generator.integers(len(endings))])


def _quotes(generator: np.random.Generator, text: bytes) -> bytes:
    place = generator.integers(len(text) + 1, size=generator.integers(1, 3))
    for where in sorted(place, reverse=True):
        text = text[:where] + b'"' + text[where:]
    return text


def _encoding(generator: np.random.Generator, text: bytes) -> bytes:
    name = ENCODINGS[generator.integers(len(ENCODINGS))]
    return text.decode("latin-1").encode(name, errors="replace")


def _repeated(generator: np.random.Generator, text: bytes) -> bytes:
    return (text * int(generator.integers(2, 5)))[:100_000]


def _token(generator: np.random.Generator) -> bytes:
    return TOKENS[generator.integers(len(TOKENS))].encode()


MUTATIONS: list[Callable[[np.random.Generator, bytes], bytes]] = [
    _bytes, _insert, _cut, _cell, _cell, _cell, _lines, _separators, _endings, _quotes, _encoding,
    _repeated,
]  # fmt: skip


class TooLong(BaseException):
    """A file was not read in time."""


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raises `TooLong` after so many seconds."""

    def ring(number: int, frame: Any) -> None:
        raise TooLong

    previous = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def outcome(path: Path, study: sg.Study) -> tuple[str, str | None]:
    """What reading a file came to, in a few words, and what is wrong with that."""
    try:
        with alarm(SECONDS):
            observed = read_csv(path, study)
    except DataError as error:
        text = str(error).replace(str(path), "FILE")
        fault = "FILE" not in text or "\n" in text or len(text) > LONGEST
        return _kind(text), f"message: {text[:500]!r}" if fault else None
    except (Exception, TooLong) as error:
        return type(error).__name__, f"{type(error).__name__}: {error}"
    shape = (study.context_ts.size, len(study.channels))
    right = observed.values.shape == observed.mask.shape == shape
    finite = right and bool(np.isfinite(np.asarray(observed.values)).all())
    return "a record", None if finite and np.asarray(observed.mask).any() else "a wrong record"


def _kind(text: str) -> str:
    words = (
        "not a CSV text file", "is empty", "header with the names", "same name", "cells, but",
        "more than one column of times", "needs the columns", "none of the study's [", "too short",
        "too long", "stands in row", "no value", "not a time", "times (", "not a number",
        "impossible",
    )  # fmt: skip
    return next((f"message: {kind}" for kind in words if kind in text), "another message")


def fuzz(files: int, seed: int, folder: Path) -> dict[str, Any]:
    """Reads so many damaged files; how many came to what, and those that came to a fault."""
    generator, cases = np.random.default_rng(seed), studies()
    counts: collections.Counter[str] = collections.Counter()
    faults, longest, path = [], 0.0, folder / "data.csv"
    for number in range(files):
        study, texts = cases[generator.integers(len(cases))]
        text = damaged(generator, texts[generator.integers(len(texts))])
        path.write_bytes(text)
        start = time.perf_counter()
        kind, fault = outcome(path, study)
        longest = max(longest, time.perf_counter() - start)
        counts[kind] += 1
        if fault is not None:
            faults.append({"file": number, "fault": fault, "bytes": repr(text[:300])})
    return {
        "files": files, "seed": seed, "outcomes": dict(counts.most_common()),
        "faults": len(faults), "first_faults": faults[:10], "longest_seconds": longest,
    }  # fmt: skip


def main(options: Options) -> None:
    """Runs, prints the table and the line."""
    start = time.perf_counter()
    warnings.simplefilter("error")  # a warning would be a traceback's kin
    with tempfile.TemporaryDirectory() as folder:
        result = fuzz(3_000 if options.quick else options.files, options.seed, Path(folder))
    table = Table(title=f"{result['files']:,} damaged files: {result['faults']} faults")
    table.add_column("outcome")
    table.add_column("files", justify="right")
    for kind, count in result["outcomes"].items():
        table.add_row(kind, f"{count:,}")
    Console().print(table, markup=False)
    result["seconds"] = time.perf_counter() - start
    finish("fuzz_csv", result, store=not options.quick)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
