"""Pictures and the page: what is drawn and written is what was found, for any study."""

import dataclasses
import json
from html.parser import HTMLParser

import jax.numpy as jnp
import matplotlib.colors
import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.image import imread

import sgjax as sg
from sgjax import _sections, plots
from sgjax._drawing import robust_range, uniform_band
from sgjax._page import number, percent, picture, probability, rounded, spread
from sgjax.analysis import Analysis, describe_attributed, describe_prior_predictive
from sgjax.attribution import AttributedPosterior, Neighbours
from sgjax.datasets import influenza_1978, lynx_hare_1900
from sgjax.diagnostics import Calibration
from sgjax.mismatch import Mismatch
from sgjax.observations import Observed
from sgjax.predictors import Posterior, summarise
from sgjax.report import verdict, write_report, write_result
from sgjax.studies.influenza_1978 import influenza_1978 as influenza_study
from sgjax.studies.lynx_hare import lynx_hare as lynx_study

LEVELS = np.array([0.005, 0.05, 0.25, 0.5, 0.75, 0.95, 0.995])
NASTY = "<script>alert('x')</script> & $x$_y"


def bands(values):
    spreads = np.array([0.1, 0.3, 0.7, 1.0, 1.4, 2.5, 6.0])
    return {
        "levels": LEVELS,
        "quantiles": spreads[:, None, None] * np.maximum(values, 1.0),
        "examples": values[None],
        "outside": 0.0,
    }


def make(study, dataset, theta, p_value=0.2, mask=None):
    """An analysis with made-up numbers: `theta` holds the draws by mechanism."""
    rng = np.random.default_rng(0)
    mask = np.ones(dataset.values.shape, bool) if mask is None else mask
    values = np.where(mask, dataset.values, 0.0)
    observed = Observed(jnp.asarray(dataset.ts), jnp.asarray(values), jnp.asarray(mask))
    mechanisms = list(study.mechanisms)
    k = 5
    near = dataset.values * rng.lognormal(0.0, 0.2, (k, *dataset.values.shape))
    names = dict.fromkeys(name for table in theta.values() for name in table)
    neighbours = Neighbours(
        tuple(range(2**40, 2**40 + k)),
        np.linspace(0.3, 0.9, k),
        tuple(mechanisms[-1] if row else mechanisms[0] for row in range(k)),
        {name: np.full(k, np.nan) if name == "sigma" else rng.random(k) for name in names},
        near,
        near,
    )
    mismatch = Mismatch(0.6, p_value, rng.gamma(6.0, 0.1, 99), neighbours)
    attributed = cloud(study, theta)
    before = bands(dataset.values)
    result = {
        "study": study.name,
        "estimates": {name: summarise(table) for name, table in theta.items()},
        "mechanisms": dict(zip(mechanisms, (0.1725, 0.8275), strict=False)),
        "prior_predictive": describe_prior_predictive(before),
        "neighbours": neighbours.table(),
        "attributed": describe_attributed(attributed),
    }
    posterior = object.__new__(Posterior)  # the pictures never ask it
    return Analysis(study, observed, posterior, theta, mismatch, attributed, before, result)


def cloud(study, theta):
    """An attributed posterior of the first draws, 40 in each mechanism."""
    mechanisms = list(theta)
    k, share = 40 * len(mechanisms), 1 / len(mechanisms)
    values = {
        name: {key: np.asarray(draws)[:40] for key, draws in table.items()}
        for name, table in theta.items()
    }
    return AttributedPosterior(
        study,
        "regression",
        k,
        0.75 * k,
        np.linspace(0.3, 2.0, k),
        tuple(range(k)),
        values,
        {name: np.full(40, 1 / 40) for name in mechanisms},
        dict.fromkeys(mechanisms, share),
        dict.fromkeys(mechanisms, (share * (1 - share) / k) ** 0.5),
        (f"{mechanisms[0]} has too few neighbours (7) for a line.",),
        {name: dict.fromkeys(table, 40.0) for name, table in values.items()},
    )


def lognormal(rng, **medians):
    return {name: rng.lognormal(np.log(median), 0.1, 2000) for name, median in medians.items()}


@pytest.fixture(scope="module")
def flu():
    rng = np.random.default_rng(1)
    theta = {
        "SIR": lognormal(rng, beta=1.74, gamma=0.54, R0=3.2),
        "SEIR": lognormal(rng, beta=2.9, gamma=0.5, sigma=1.6, R0=5.8),
    }
    analysis = make(influenza_study(), influenza_1978, theta)
    rows = {"mean": 3.1111, "sd": 0.2, "q05": 2.8888, "q50": 3.0505, "q95": 3.4444}
    analysis.result.update(
        mechanisms_prior={"SIR": 0.5, "SEIR": 0.5},
        reference={"SIR": {"R0": rows}},
        reference_mechanisms={"SIR": 0.213, "SEIR": 0.787},
        sensitivity=[
            {
                "prior": "sigma ~ LogNormal(0, 1)",
                "probabilities": {"SIR": 0.33, "SEIR": 0.67},
                "effective_sample_size": {"SIR": 1.0, "SEIR": 0.004},
            }
        ],
        model_averaged={"R0": rows},
        training={"simulations": 10_240_000, "seconds": 212.3, "valid_share": 0.9998},
        versions={"jax": "1.2.3"},
        hardware="one processor",
        seed=17,
    )
    analysis.result["mismatch"] = {
        "searched": 200_000,
        "posterior_predictive_p": {"SIR": 0.31, "SEIR": None},
    }
    return analysis


@pytest.fixture(scope="module")
def lynx():
    rng = np.random.default_rng(2)
    mask = np.ones((21, 2), bool)
    mask[6:9, 1] = False
    theta = {"LotkaVolterra": {"alpha": rng.random(500), "log_sd": rng.random((500, 2))}}
    return make(lynx_study(), lynx_hare_1900, theta, p_value=0.001, mask=mask)


@pytest.fixture(scope="module")
def calibration():
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 2, 2000)
    ranks = {"R0": rng.random(2000), "beta": rng.beta(0.5, 0.5, 2000)}
    share = np.where(truth == 1, rng.beta(2, 1, 2000), rng.beta(1, 2, 2000))
    sds = {name: rng.random(2000) for name in ranks}
    return Calibration(ranks, sds, np.stack([1 - share, share], axis=1), truth, 2000)


CURVE = [
    {"step": s, "simulations": 512 * s, "loss": 3 / s, "losses": {"a": 2 / s, "b": 1 / s}}
    for s in range(1, 31)
]


def data_lines(figure):
    return [
        next(line for line in axes.get_lines() if line.get_label() == "data")
        for axes in figure.axes
    ]


def write(folder, analysis, calibration=None, curve=(), settings=None):
    page = write_report(
        folder, analysis, calibration=calibration, curve=list(curve), settings=settings or {}
    )
    return page.read_text(encoding="utf-8")


# Pictures


def test_prior_predictive_shows_the_bands_and_gaps_in_the_data(lynx):
    figure = plots.plot_prior_predictive(lynx.study, lynx.observed, lynx.prior_predictive)
    assert [axes.get_title(loc="left") for axes in figure.axes] == list(lynx.study.channels)
    for channel, (axes, line) in enumerate(zip(figure.axes, data_lines(figure), strict=True)):
        mask = np.asarray(lynx.observed.mask)[:, channel]
        expected = np.where(mask, lynx_hare_1900.values[:, channel], np.nan)
        np.testing.assert_allclose(np.asarray(line.get_ydata(), float), expected, rtol=1e-6)
        fans = [c for c in axes.collections if isinstance(c, PolyCollection)]
        outer = fans[0].get_paths()[0].vertices[:, 1]
        quantiles = lynx.prior_predictive["quantiles"][:, :, channel]
        assert len(fans) == 3
        assert outer.max() == pytest.approx(quantiles[-1].max())
        assert outer.min() == pytest.approx(quantiles[0].min())


def test_values_that_span_decades_get_a_logarithmic_scale(flu):
    wide = bands(influenza_1978.values) | {"quantiles": np.geomspace(0.01, 1e7, 7)[:, None, None]}
    wide["quantiles"] = np.broadcast_to(wide["quantiles"], (7, 14, 1))
    figure = plots.plot_prior_predictive(flu.study, flu.observed, wide)
    assert figure.axes[0].get_yscale() == "log"
    figure = plots.plot_prior_predictive(flu.study, flu.observed, flu.prior_predictive)
    assert figure.axes[0].get_yscale() == "linear"
    wide["quantiles"] = np.where(wide["quantiles"] < 1, 0.0, wide["quantiles"])
    figure = plots.plot_prior_predictive(flu.study, flu.observed, wide)
    assert figure.axes[0].get_yscale() == "symlog"


def test_neighbours_are_drawn_by_mechanism_the_nearer_the_stronger(flu):
    figure = plots.plot_neighbours(
        flu.study, flu.observed, flu.neighbours, plots.Units("days", "boys")
    )
    (axes,) = figure.axes
    assert axes.get_xlabel() == "Time (days)"
    assert axes.get_title(loc="left") == "infectious (boys)"
    colours = plots.mechanism_colours(flu.study.mechanisms)
    lines = axes.get_lines()
    assert len(lines) == 6 and lines[-1].get_label() == "data"
    # The nearest is drawn last of all neighbours, and most strongly.
    for line, row in zip(lines[:-1], reversed(range(5)), strict=True):
        np.testing.assert_allclose(line.get_ydata(), flu.neighbours.values[row, :, 0])
        assert line.get_color() == colours[flu.neighbours.mechanisms[row]]
    strengths = [line.get_alpha() for line in lines[:-1]]
    assert strengths == sorted(strengths)


def test_a_long_series_with_many_channels_becomes_some_panels():
    ring, noise = sg.simulators.Lorenz96(), sg.observations.Gaussian()
    study = sg.Study(ring, noise, sg.Estimate("forcing"))
    values = np.random.default_rng(0).random((36, 40))
    observed = Observed(jnp.asarray(study.ts), jnp.asarray(values), jnp.ones((36, 40), bool))
    figure = plots.plot_prior_predictive(study, observed, bands(values))
    shown = [axes for axes in figure.axes if axes.get_lines()]
    assert len(shown) == 12
    assert shown[0].get_title(loc="left") == "x0"
    assert shown[-1].get_title(loc="left") == "x39"


def test_estimates_show_intervals_and_the_exact_reference(flu):
    figure = plots.plot_estimates(flu)
    by_name = {axes.get_title(loc="left"): axes for axes in figure.axes}
    assert list(by_name) == ["beta", "gamma", "R0", "sigma"]
    drawn = [np.asarray(line.get_xdata(), float) for line in by_name["R0"].get_lines()]
    for mechanism in ("SIR", "SEIR"):
        row = flu.result["estimates"][mechanism]["R0"]
        assert any(x.size == 2 and np.allclose(x, [row["q05"], row["q95"]]) for x in drawn)
        assert any(x.size == 1 and np.allclose(x, row["q50"]) for x in drawn)
    assert any(x.size == 1 and np.allclose(x, 3.0505) for x in drawn)
    assert any(x.size == 2 and np.allclose(x, [2.8888, 3.4444]) for x in drawn)
    assert "not in SIR" in [text.get_text() for text in by_name["sigma"].texts]


def test_the_nearest_simulations_stand_under_the_network_as_a_posterior(flu):
    figure = plots.plot_attributed(flu, flu.attributed)
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes}
    assert len(panels) == 4
    words = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert [word.replace("\n", " ") for word in words] == [
        "SIR, network",
        "SIR, nearest",
        "SEIR, network",
        "SEIR, nearest",
    ]
    colour = plots.mechanism_colours(flu.study.mechanisms)["SEIR"]
    (middle,) = [
        line.get_xdata()[0]
        for line in panels["sigma"].lines
        if line.get_marker() == "o" and line.get_color() == colour
    ]
    assert middle == pytest.approx(np.median(flu.draws["SEIR"]["sigma"]))
    assert any(text.get_text() == "not in SIR" for text in panels["sigma"].texts)


def test_a_heavy_tail_does_not_flatten_the_rest():
    values = np.random.default_rng(0).standard_cauchy(20_000) ** 2
    low, high = robust_range([values])
    assert low < np.quantile(values, 0.05) and np.quantile(values, 0.95) < high
    assert high < 0.01 * values.max()


def test_mechanism_bars_are_the_probabilities(flu):
    (axes,) = plots.plot_mechanisms(flu.result).axes
    widths = [bar.get_width() for bar in axes.patches]  # pyright: ignore
    expected = [0.5, 0.5, 0.1725, 0.8275, 0.213, 0.787, 0.33, 0.67]
    np.testing.assert_allclose(widths, expected)
    assert [text.get_text() for text in axes.get_yticklabels()][:3] == [
        "before the data",
        "given the data",
        "exact reference",
    ]
    assert "83 %" in [text.get_text() for text in axes.texts]


def test_training_shows_each_loss():
    figure = plots.plot_training(CURVE)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["total loss", "a", "b"]
    for axes, top in zip(figure.axes, (3, 2, 1), strict=True):
        (line,) = axes.get_lines()
        np.testing.assert_allclose(line.get_xdata(), 512 * np.arange(1, 31))
        np.testing.assert_allclose(line.get_ydata(), top / np.arange(1, 31))


def test_calibration_shows_coverage_reliability_and_ranks(calibration):
    figure = plots.plot_calibration(calibration, ["SIR", "SEIR"])
    coverage, reliability, *ranks = figure.axes
    curves = {str(line.get_label()): line for line in coverage.get_lines()}
    levels = np.asarray(curves["R0"].get_xdata(), float)
    for name in ("R0", "beta"):
        excess = np.asarray(curves[name].get_ydata(), float)
        expected = [100 * (calibration.coverage(name, x) - x) for x in levels]
        np.testing.assert_allclose(excess, expected)
    means, shares, _ = calibration.reliability(1).T
    line = reliability.get_lines()[1]
    np.testing.assert_allclose(line.get_xdata(), means)
    np.testing.assert_allclose(line.get_ydata(), shares)
    assert reliability.get_title(loc="left").startswith("SEIR")
    assert [axes.get_title(loc="left") for axes in ranks[:2]] == ["R0", "beta"]


@pytest.mark.parametrize("cumulative", [False, True])
def test_the_band_holds_whole_uniform_histograms_in_95_percent(cumulative):
    rng, bins, size, repeats = np.random.default_rng(5), 20, 300, 1000
    share = np.full(bins, 1 / bins)
    band = uniform_band(size, share, cumulative=cumulative)
    seen = rng.multinomial(size, share, repeats) / size - share
    seen = seen.cumsum(axis=1)[:, :-1] if cumulative else seen
    inside = np.mean(np.all(np.abs(seen) <= band * (1 + 1e-9), axis=1))
    # Two Monte Carlo errors: of these repeats and of the 2,000 draws that made the band; counts
    # are whole numbers, so the band may hold somewhat more.
    error = np.sqrt(0.95 * 0.05 * (1 / repeats + 1 / 2000))
    assert 0.95 - 4 * error < inside < 0.95 + 4 * error + 0.02


def test_mismatch_counts_every_simulation_and_marks_the_data(flu):
    (axes,) = plots.plot_mismatch(flu.mismatch).axes
    assert sum(bar.get_height() for bar in axes.patches) == 99  # pyright: ignore
    assert np.allclose(axes.get_lines()[0].get_xdata(), 0.6)
    assert "p = 0.20" in axes.texts[0].get_text()


def forecasting(lynx):
    study = dataclasses.replace(lynx.study, task=sg.Forecast(context=14, horizon=7))
    observed = Observed(*(leaf[:14] for leaf in dataclasses.astuple(lynx.observed)))
    quantiles = np.array([0.5, 1.0, 2.0])[:, None, None] * lynx_hare_1900.values[14:]
    ahead = {"levels": (0.05, 0.5, 0.95), "quantiles": quantiles.tolist()}
    result = {"forecast": ahead}
    before = lynx.prior_predictive | {"quantiles": lynx.prior_predictive["quantiles"][:, :14]}
    return dataclasses.replace(
        lynx, study=study, observed=observed, prior_predictive=before, result=result, draws={}
    )


def test_the_forecast_begins_where_the_data_end(lynx):
    figure = plots.plot_forecast(forecasting(lynx))
    for channel, axes in enumerate(figure.axes):
        median = next(line for line in axes.get_lines() if line.get_label() == "median")
        np.testing.assert_allclose(median.get_xdata(), np.arange(14, 21))
        np.testing.assert_allclose(median.get_ydata(), lynx_hare_1900.values[14:, channel])


def test_pictures_leave_no_global_state(flu):
    before = dict(matplotlib.rcParams)
    plots.plot_estimates(flu)
    assert dict(matplotlib.rcParams) == before


# The page


class Links(HTMLParser):
    """Collects tags and what they would load."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.sources, self.text = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href", "srcset")]

    def handle_data(self, data):
        if self.tags[-1:] != ["style"]:
            self.text.append(data)


@pytest.fixture(scope="module")
def full(tmp_path_factory, flu, calibration):
    folder = tmp_path_factory.mktemp("full")
    write(folder, flu, calibration, CURVE, {"preset": {"num_steps": 4321}})
    return folder


def test_the_page_holds_what_was_found(full, flu, calibration):
    page = (full / "report.html").read_text(encoding="utf-8")
    text = " ".join(Links(page).text).replace("\N{NO-BREAK SPACE}", " ")
    row = flu.result["estimates"]["SEIR"]["R0"]
    shown = ["3.11", "3.05", "82.8 %", "21.3 %", "78.7 %", "33.0 %", "too few draws to trust"]
    shown += ["sigma ~ LogNormal(0, 1)", "among these mechanisms only", "200,000", "10,240,000"]
    shown += ["212", "99.98 %", "1.2.3", "one processor", "17", "preset.num steps", "4321", "0.31"]
    shown += [str(2**40), f"{calibration.coverage('beta'):.1%}".replace("%", " %")]
    shown += ["exact reference", rounded(row, spread(row))["q50"]]
    assert [part for part in shown if part not in text] == []
    titles = page.split("<h2>")[1:]
    order = [title.partition("</h2>")[0].split()[0] for title in titles]
    assert order == ["The", "Estimates", "Which", "Do", "What", "The", "Can", "Training",
                     "Averaged", "How"]  # fmt: skip
    assert imread(full / "figure.png").shape[1] > 1000
    assert sorted(path.name for path in full.iterdir()) == ["figure.png", "report.html"]


def test_the_page_needs_nothing_from_outside(full):
    page = (full / "report.html").read_text(encoding="utf-8")
    links = Links(page)
    assert not {"script", "link", "iframe", "object"} & set(links.tags)
    assert links.sources and all(s.startswith("data:image/svg+xml;base64,") for s in links.sources)
    assert "http" not in page and "url(" not in page and "@import" not in page


def test_the_same_numbers_give_the_same_picture(flu):
    first, again = (picture(plots.plot_mechanisms(flu.result), "", "") for _ in range(2))
    assert first == again


def test_names_are_shown_and_never_obeyed(tmp_path, flu):
    mechanisms = dict(zip((NASTY, "SEIR"), flu.study.mechanisms.values(), strict=True))
    simulator = sg.simulators.MechanismMixture(mechanisms, table_size=2)
    study = dataclasses.replace(flu.study, simulator=simulator, name=NASTY)
    theta = {NASTY: {NASTY: flu.draws["SIR"]["beta"]}, "SEIR": flu.draws["SEIR"]}
    page = write(tmp_path, make(study, influenza_1978, theta), settings={NASTY: NASTY})
    assert "<script" not in page
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp; $x$" in page


def test_a_minimal_result_makes_a_page(tmp_path, lynx):
    page = write(tmp_path, lynx)
    text = " ".join(Links(page).text)
    assert "log sd[1]" in text and "LotkaVolterra" in text
    for absent in ("exact", "Which mechanism", "Training", "Can the intervals", "Averaged", "None"):
        assert absent not in text
    page = write(tmp_path, forecasting(lynx))
    assert "Estimates" not in page and "Forecast" in page


def test_what_is_not_a_number_becomes_a_dash(tmp_path, flu, calibration):
    theta = {name: dict(table) for name, table in flu.draws.items()}
    theta["SIR"]["R0"] = np.full(2000, np.nan)
    theta["SEIR"]["R0"] = np.where(np.arange(2000) < 100, np.nan, theta["SEIR"]["R0"])
    analysis = make(flu.study, influenza_1978, theta)
    analysis.result["training"] = {"simulations": None, "seconds": np.nan}
    analysis.result["calibration"] = {"R0": {"coverage_90": np.nan}}
    analysis.neighbours.values[2, 3] = np.nan
    curve = [*CURVE, {"step": 31, "simulations": 512 * 31, "loss": np.nan}]
    page = write(tmp_path, analysis, calibration, curve)
    words = " ".join(Links(page).text).split()
    assert not {"nan", "inf", "-inf", "None", "[nan]"} & set(words)


def test_a_verdict_names_the_mechanism_or_warns_first(flu, lynx):
    words = verdict(flu)
    assert words.startswith("Among SIR and SEIR only, the data favour SEIR")
    assert "83 %" in words and "79 %" in words and "R0" in words and words.endswith("(p = 0.20).")
    assert verdict(lynx).startswith("The data lie outside the simulated world")


def test_units_are_given_only_where_they_are_known(flu, lynx):
    assert _sections.Page(flu, None, [], {}).units == ("days", "boys")
    # Some of these values are missing, so they are not the record that ships with the package.
    assert _sections.Page(lynx, None, [], {}).units == ("years", "")


def test_a_page_is_whole_or_not_there(tmp_path, flu, monkeypatch):
    (tmp_path / "report.html").write_text("the old page", encoding="utf-8")

    def fail(page):
        raise OSError("no space left")

    monkeypatch.setattr(_sections, "provenance", fail)
    with pytest.raises(OSError, match="no space"):
        write(tmp_path, flu)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == "the old page"


def test_result_is_valid_json_whatever_the_numbers(tmp_path):
    result = {
        "a": np.float32(1.5),
        "b": [np.nan, np.inf, -np.inf, 2],
        "c": {"d": np.array([1.0, np.nan]), "e": jnp.arange(2)},
        "f": (True, None, "text"),
        3: float("nan"),
    }
    path = write_result(tmp_path, result)

    def refuse(word):
        raise AssertionError(word)

    assert json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse) == {
        "a": 1.5,
        "b": [None, None, None, 2],
        "c": {"d": [1.0, None], "e": [0, 1]},
        "f": [True, None, "text"],
        "3": None,
    }


# Numbers


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (3.14159, "3.14"),
        (1234.5, "1,234"),
        (0.00123, "0.00123"),
        (-2.5, "\N{MINUS SIGN}2.50"),
        (1.5e9, "1.50 \N{MULTIPLICATION SIGN} 10⁹"),
        (2e-7, "2.00 \N{MULTIPLICATION SIGN} 10⁻⁷"),
        (float("nan"), "\N{EN DASH}"),
        (None, "\N{EN DASH}"),
    ],
)
def test_numbers(value, text):
    assert number(value) == text


def test_shares_and_p_values():
    assert [percent(x) for x in (0.0, 0.001, 0.456, 0.9999, 1.0)] == [
        "0 %", "< 1 %", "46 %", "> 99 %", "100 %",
    ]  # fmt: skip
    assert percent(0.8275, 1) == "82.8 %"
    assert [probability(p) for p in (0.0001, 0.034, 0.5)] == ["< 0.001", "0.034", "0.50"]


def test_decimals_follow_the_spread():
    row = {"mean": 5.912345, "sd": 1.2, "q05": 4.2, "q50": 5.8, "q95": 8.1}
    assert rounded(row, spread(row))["mean"] == "5.91"
    assert rounded({"mean": 1234.5}, 80.0) == {"mean": "1,234"}
    assert rounded({"mean": 0.123456}, None) == {"mean": "0.123"}
