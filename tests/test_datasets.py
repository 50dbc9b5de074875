"""The shipped series: shapes, and facts known about each from elsewhere than its table."""

import numpy as np
import pytest

from sgjax import datasets
from sgjax.datasets import Dataset

SERIES = [value for value in vars(datasets).values() if isinstance(value, Dataset)]


@pytest.mark.parametrize("series", SERIES, ids=lambda series: series.name)
def test_series_is_complete_and_cited(series):
    assert getattr(datasets, series.name) is series
    assert series.values.shape == (len(series.ts), len(series.channels))
    assert series.values.dtype == series.ts.dtype == np.float64
    assert np.all(np.isfinite(series.values)) and np.all(series.values > 0)
    assert np.all(np.diff(series.ts) > 0)
    assert any(str(year) in series.source for year in range(1900, 2020))
    assert series.unit and series.time_unit and series.notes
    with pytest.raises(ValueError, match="read-only"):
        series.values[0, 0] = 1.0


def test_series_are_all_there():
    assert len(SERIES) == 4


def test_dataset_refuses_a_shape_that_does_not_match(unchecked):
    with pytest.raises(ValueError, match=r"\(2, 1\).*\(3, 1\)"):
        Dataset("short", np.arange(3.0), np.ones((2, 1)), ("a",), "", "")


def test_influenza_days_in_bed_match_the_report():
    values = datasets.influenza_1978.values[:, 0]
    assert len(values) == 14 and values.sum() == 1559
    assert values.argmax() == 5 and values.max() == 298
    # The report: 512 boys fell ill, each away from class for three to seven days.
    assert 3 < values.sum() / 512 < 7


def test_lynx_follow_hares_in_two_cycles():
    hare, lynx = datasets.lynx_hare_1900.values.T
    assert len(hare) == 21
    assert hare.sum() == pytest.approx(715.7) and lynx.sum() == pytest.approx(423.5)
    peaks = [
        1900 + 1 + np.flatnonzero((x[1:-1] > x[:-2]) & (x[1:-1] > x[2:]) & (x[1:-1] > 30))
        for x in (hare, lynx)
    ]
    assert peaks[0].tolist() == [1903, 1913] and peaks[1].tolist() == [1904, 1915]


def test_census_follows_the_curve_of_pearl_and_reed():
    series = datasets.united_states_1790
    # Their equation, with time in years from 1780; it passes through 1790, 1850 and 1910.
    curve = 2.9303009 / (0.014854 + np.exp(-0.0313395 * (series.ts + 10)))
    error = series.values[:, 0] / curve - 1
    assert np.all(np.abs(error[[0, 6, 12]]) < 1e-3)
    assert np.all(np.abs(error[:13]) < 0.04)
    # The curve allows for an error of a few per cent, the sums for none.
    assert series.values[:13].sum() == pytest.approx(430.315410, rel=1e-9)
    assert series.values[13:].sum() == pytest.approx(510.852302, rel=1e-9)
    assert np.all(np.abs(error[13:]) < 0.04)


def test_theophylline_decays_at_the_known_rate():
    series = datasets.theophylline_1994
    ts, values = series.ts, series.values[:, 0]
    assert len(values) == 11 and values.max() == 10.5 and ts[values.argmax()] == 1.12
    # The non-compartmental analysis of subject 1: terminal half-life 14.3 h from the last three.
    slope = np.polyfit(ts[-3:], np.log(values[-3:]), 1)[0]
    assert np.log(2) / -slope == pytest.approx(14.3, abs=0.05)
    area = np.sum(np.diff(ts) * (values[1:] + values[:-1]) / 2)
    assert area == pytest.approx(148.92, abs=0.01)
