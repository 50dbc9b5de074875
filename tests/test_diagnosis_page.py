"""The page of `sgjax check`: what it says, what its pictures hold."""

import json

import numpy as np
import pytest

import sgjax as sg
from sgjax import diagnosis_page
from sgjax.diagnostics import Diagnosis, Skill, ecdf, ecdf_band, uniformity
from sgjax.diagnostics.diagnosis import BY_DATA, DENSITY, FIXED, LIKELIHOOD, RankTest
from sgjax.diagnostics.skill import ECE

QUANTITIES = ("R0", LIKELIHOOD, DENSITY, FIXED, BY_DATA)


def rank_test(about: str, mechanism: str, pits: np.ndarray) -> RankTest:
    return RankTest(about, mechanism, pits, uniformity(pits))


@pytest.fixture(scope="module")
def diagnosis() -> Diagnosis:
    """Right under A; under B the posterior of R0 is too narrow."""
    random = np.random.default_rng(0)
    tests = [
        rank_test(about, mechanism, random.random(500))
        for mechanism in ("A", "B")
        for about in QUANTITIES
    ]
    tests[5] = rank_test("R0", "B", random.beta(0.6, 0.6, 500))
    return Diagnosis(
        tuple(tests),
        {("R0", "A"): Skill(0.8, 0.01), ("R0", "B"): Skill(0.001, 0.01)},
        {("parameters", "A"): Skill(2.5, 0.1)},
        ECE(0.02, 0.01, 0.03, np.full(99, 0.03)),
        1000,
        ("The log likelihood within <C> is not judged: it has none.",),
    )


def test_page_says_what_was_found(diagnosis, tmp_path, growth):
    page = diagnosis_page.write_check(tmp_path, growth, diagnosis, None)
    text = page.read_text(encoding="utf-8")
    assert "1 of 11 tests found errors" in text and "too narrow" in text
    assert "no more than the prior" in text and "&lt;C&gt;" in text
    assert text.count("data:image/svg+xml") == 2 and "Intervals and histograms" not in text
    stored = json.loads((tmp_path / "check.json").read_text())
    assert not stored["passed"] and len(stored["tests"]) == 11
    wrong = [row for row in stored["tests"] if row["wrong"]]
    assert [(row["about"], row["mechanism"]) for row in wrong] == [("R0", "B")]
    assert stored["tests"][-1]["about"] == "probabilities of mechanisms"
    assert [row["informative"] for row in stored["knowledge"]] == [True, False, True]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["check.html", "check.json"]


def test_curves_are_differences_from_the_diagonal(diagnosis):
    figure = diagnosis_page.plot_ranks(diagnosis)
    assert [axes.get_title(loc="left") for axes in figure.axes] == list(QUANTITIES[:3])
    axes = figure.axes[0]
    _, right, narrow = axes.get_lines()
    points = ecdf_band(500).points
    for line, test in ((right, diagnosis.tests[0]), (narrow, diagnosis.tests[5])):
        found = np.asarray(line.get_ydata())[1:-1]
        np.testing.assert_allclose(found, 100 * (ecdf(test.pits) - points), atol=1e-9)
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert np.max(np.abs(right.get_ydata())) < band.max() < np.max(narrow.get_ydata())


def test_joint_coverage_counts_levels_from_the_densest(diagnosis):
    figure = diagnosis_page.plot_joint(diagnosis)
    assert len(figure.axes) == 3
    line = figure.axes[0].get_lines()[1]
    inside = np.mean(1 - diagnosis.tests[2].pits < 0.5)
    place = list(ecdf_band(500).points).index(0.5) + 1
    assert np.asarray(line.get_ydata())[place] == pytest.approx(100 * (inside - 0.5))


def test_nothing_judged_leaves_a_page_with_what_is_known(tmp_path, growth):
    nothing = Diagnosis((), {("rate", ""): Skill(0.9, 0.01)}, {}, None, 1000, ())
    text = diagnosis_page.write_check(tmp_path, growth, nothing, None).read_text(encoding="utf-8")
    assert "give nothing" in text and "contraction" in text and "svg" not in text
    calibration = sg.diagnostics.Calibration({}, {}, np.ones((9, 1)), np.zeros(9, int), 9)
    other = tmp_path / "other"
    other.mkdir()
    text = diagnosis_page.write_check(other, growth, nothing, calibration).read_text("utf-8")
    assert "Intervals and histograms" not in text
