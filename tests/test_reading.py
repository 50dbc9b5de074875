"""The user's CSV: what is understood, and that each fault names its place."""

from pathlib import Path

import numpy as np
import pytest

import sgjax as sg
from benchmarks import fuzz_csv
from sgjax.reading import DataError, read_csv

GOOD = "day,infectious\n" + "\n".join(f"{day},{10 * day}" for day in range(1, 15))


@pytest.fixture(scope="module")
def study():
    return sg.Study(sg.simulators.SIR(), sg.observations.NegativeBinomial(), sg.Estimate())


@pytest.fixture
def read(tmp_path, study):
    def read(text, study=study):
        path = tmp_path / "data.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_csv(path, study)

    return read


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        GOOD.replace("infectious", "in bed"),  # one channel: any name will do
        "\ufeff" + GOOD.replace("\n", "\r\n"),  # as a spreadsheet saves it
        "infectious\n" + "\n".join(f" {10 * day} " for day in range(1, 15)),
        "\n".join([GOOD.splitlines()[0], *reversed(GOOD.splitlines()[1:])]),  # any order
    ],
)
def test_good_files(read, text):
    observed = read(text)
    np.testing.assert_array_equal(observed.values[:, 0], 10.0 * np.arange(1, 15))
    assert observed.mask.all()


def test_missing_cells_and_rows_are_masked(read):
    lines = GOOD.splitlines()
    lines[3] = "3,"
    lines[4] = "4,NA"
    del lines[7]
    observed = read("\n".join(lines))
    expected = np.isin(np.arange(1, 15), [3, 4, 7])
    np.testing.assert_array_equal(~np.asarray(observed.mask[:, 0]), expected)
    assert np.all(np.asarray(observed.values[:, 0])[expected] == 0)


def test_several_channels_by_name(read):
    study = sg.Study(
        sg.simulators.LotkaVolterra(ts=range(3)), sg.observations.LogNormal(), sg.Estimate()
    )
    observed = read("predator,t,prey\n1,0,4\n2,1,5\n3,2,6\n", study)
    np.testing.assert_array_equal(observed.values, [[4, 1], [5, 2], [6, 3]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("infectious\n1\n2\n", "too short: it has 2 rows, .* 14 times"),
        (GOOD.replace("day,", "number,"), r"columns \['number'\] are none of"),
        (GOOD.replace("3,30", "3,-30"), "row 4, column infectious: -30 is impossible"),
        (GOOD.replace("3,30", "3,inf"), "row 4, column infectious: inf is impossible"),
        (GOOD.replace("3,30", "3,many"), "row 4, column infectious: 'many' is not a number"),
        (GOOD.replace("3,30", "3.5,30"), "row 4, column day: 3.5 is none of the study's 14 times"),
        (GOOD.replace("3,30", "then,30"), "row 4, column day: 'then' is not a time"),
        (GOOD.replace("3,30", "2,30"), "row 4: time 2 stands in row 3 too"),
        (GOOD.replace("3,30", "3,30,1"), "row 4: 3 cells, but the header has 2"),
        (GOOD.replace("day,infectious", "number,other"), "needs the columns"),
        ("1,2\n3,4\n", "header"),
        ("infectious,Infectious\n1,2\n", "same name"),
        ("infectious\n" + "\n" * 3, "too short"),
        ("infectious\n" + "NA\n" * 14, "no value"),
        (b"\xff\xfe\x00infectious", "not a CSV text file"),
    ],
)
def test_faults_name_their_place(read, text, message):
    with pytest.raises(DataError, match=message):
        read(text)


def test_no_such_file(tmp_path, study):
    with pytest.raises(DataError, match="There is no file"):
        read_csv(tmp_path / "none.csv", study)
    with pytest.raises(DataError, match="is a folder"):
        read_csv(tmp_path, study)


def test_damaged_files_give_one_message_or_a_record(tmp_path):
    result = fuzz_csv.fuzz(2_000, seed=1, folder=tmp_path)
    assert result["faults"] == 0, result["first_faults"]
    assert result["outcomes"]["a record"] > 20 and len(result["outcomes"]) > 10


def test_a_file_without_end_is_refused(study):
    with pytest.raises(DataError, match="more than 16,777,216 characters"):
        read_csv(Path("/dev/zero"), study)


def test_messages_stay_short(read):
    wide = ",".join(f"column{number}" for number in range(10_000))
    with pytest.raises(DataError, match=r"and 9994 more") as error:
        read(wide + "\n")
    assert len(str(error.value)) < 500
    with pytest.raises(DataError, match=r"xxx\.\.\.' is not a number"):
        read(GOOD.replace("3,30", "3," + "x" * 10_000))
    with pytest.raises(DataError, match="'1_000' is not a number"):
        read(GOOD.replace("3,30", "3,1_000"))
