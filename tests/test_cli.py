"""The commands as a user meets them, on a study file of the user's own and a toy budget."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

import sgjax as sg
from sgjax import cli

STUDY = """
import numpyro.distributions as dist
import sgjax as sg

study = sg.Study(
    simulator=sg.simulators.ExponentialDecay(
        prior={"rate": dist.LogNormal(0.0, 0.5)}, ts=[1, 2, 3, 4, 5, 6]
    ),
    observation=sg.observations.Gaussian(sd=0.05, prior={}),
    task=sg.Estimate(derived={"half_life": lambda theta: 0.6931 / theta["rate"]}),
    name="decay",
)
"""
TOY = ["--steps", "60", "--batch-size", "32", "--width", "16", "--depth", "1"]


def run(*arguments) -> int:
    try:
        cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture(scope="module", autouse=True)
def no_cache():
    # The commands keep compiled programs in the user's folder; tests leave no trace there.
    original, cli.set_up = cli.set_up, lambda: None
    yield
    cli.set_up = original


@pytest.fixture(scope="module")
def study_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("study") / "my_study.py"
    path.write_text(STUDY)
    return path


@pytest.fixture(scope="module")
def trained(study_file) -> Path:
    folder = study_file.parent / "run"
    assert run("train", study_file, "--folder", folder, *TOY) == 0
    return folder


@pytest.fixture(scope="module")
def data(study_file) -> Path:
    path = study_file.parent / "data.csv"
    rows = "".join(f"{t},{np.exp(-0.5 * t):.4f}\n" for t in range(1, 7))
    path.write_text("t,quantity\n" + rows)
    return path


def test_list_names_what_ships(capsys):
    assert run("list") == 0
    shown = capsys.readouterr().out
    for name in ("influenza_1978", "SIR", "NegativeBinomial", "lynx_hare_1900"):
        assert name in shown
    errors = sg.simulators.shipped_errors()
    line = next(line for line in shown.splitlines() if line.strip().startswith("SIR "))
    assert f"{errors['SIR']['q999']:.0e}" in line


def test_train_keeps_what_is_needed(trained, study_file):
    settings = json.loads((trained / "run.json").read_text())
    assert settings["study"]["name"] == "decay" and settings["preset"]["num_steps"] == 60
    assert {"jax", "sgjax", "python"} <= settings["versions"].keys()
    assert (trained / "study.py").read_text() == study_file.read_text()


def test_predict_prints_estimates(trained, data, study_file, capsys):
    assert run("predict", trained, data, "--study", study_file) == 0
    shown = capsys.readouterr().out
    assert "half_life" in shown
    row = next(line for line in shown.splitlines() if "rate" in line)
    numbers = [float(text) for text in re.findall(r"\d+\.\d+", row)]
    assert 0.2 < numbers[0] < 1.2  # the toy budget knows it roughly: the truth is 0.5


def test_the_best_state_can_be_taken(trained, data, study_file, capsys):
    # The only state kept is the best one too.
    assert run("predict", trained, data, "--study", study_file) == 0
    last = capsys.readouterr().out
    assert run("predict", trained, data, "--study", study_file, "--best") == 0
    assert capsys.readouterr().out == last


def test_resuming_without_a_folder_takes_the_latest_run(
    trained, study_file, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert run("train", "--resume") == 2
    assert "There is no run under" in capsys.readouterr().err
    (tmp_path / "sgjax-runs").mkdir()
    (tmp_path / "sgjax-runs" / "mine").symlink_to(trained)
    assert run("train", "--resume") == 2  # found, but its code must be named
    assert "Name the file to run" in capsys.readouterr().err
    assert run("train", "--resume", "a", "b") == 2
    assert "2 folders are named" in capsys.readouterr().err
    assert run("train", "influenza_1978", "--resume") == 2
    assert "no run of influenza_1978" in capsys.readouterr().err


def test_explain_writes_a_report(trained, data, study_file, capsys):
    few = ("--simulations", 2000)
    assert run("explain", trained, data, "--study", study_file, *few) == 0
    (folder,) = trained.glob("explain-*")
    result = json.loads((folder / "result.json").read_text())
    assert len(result["neighbours"]) == 20
    assert {"id", "distance", "mechanism", "theta"} <= result["neighbours"][0].keys()
    assert 0 < result["mismatch"]["p_value"] <= 1
    assert 20 <= result["attributed"]["k"] <= 250
    assert {"rate", "half_life"} <= result["attributed"]["estimates"]["ExponentialDecay"].keys()
    assert "<html" in (folder / "report.html").read_text()
    assert str(folder.name) in capsys.readouterr().out.replace("\n", "")


def test_check_judges_intervals_and_posteriors(trained, study_file, capsys):
    sizes = ["--simulations", "1024", "--posteriors", "200"]
    assert run("check", trained, "--study", study_file, *sizes) == 0
    shown = capsys.readouterr().out
    for words in ("Share of truths inside", "half_life", "log likelihood", "TARP, by data", "nats"):
        assert words in shown
    (folder,) = trained.glob("check-*")
    stored = json.loads((folder / "check.json").read_text())
    assert {row["about"] for row in stored["tests"]} >= {"rate", "half_life", "log likelihood"}
    assert stored["intervals"]["rate"]["num_simulations"] == 1024
    assert "<html" in (folder / "check.html").read_text()
    # Nothing is ever overwritten.
    assert run("check", trained, "--study", study_file, *sizes, "--folder", folder) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "measles"), "no study 'measles'"),
        (("train",), "Name a study"),
        (("train", "nowhere.py"), "is no Python file"),
        (("train", "{study}", "--folder", "{run}"), "exists already"),
        (("train", "{study}", "--batch-size", "0"), "batch_size"),
        (("train", "{study}", "--encoder", "gru"), "encoder"),
        (("train", "--resume", "{run}", "--steps", "9"), "no other option"),
        (("predict", "{nowhere}", "{data}"), "holds no run"),
        (("predict", "{run}", "{data}"), "Name the file to run: --study"),
        (("predict", "{run}", "{nowhere}", "--study", "{study}"), "There is no file"),
        (("predict", "{run}", "{data}", "--study", "{study}", "--known", "a=1"), "known"),
        (("check", "{run}", "--study", "{study}", "--posteriors", "9"), "at least 100"),
    ],
)
def test_mistakes_get_one_message_and_status_2(
    unchecked, trained, data, study_file, capsys, arguments, message
):
    places = {"study": study_file, "run": trained, "data": data, "nowhere": trained / "nowhere"}
    before = sorted(path.name for path in trained.iterdir())
    assert run(*(argument.format(**places) for argument in arguments)) == 2
    error = capsys.readouterr().err
    assert message in error.replace("\n", " ") and "Traceback" not in error
    assert sorted(path.name for path in trained.iterdir()) == before


def test_marks_in_a_file_are_shown_as_they_are(trained, study_file, tmp_path, capsys):
    path = tmp_path / "marked.csv"
    path.write_text("t,[/red]\n1,[bold]\n")
    assert run("predict", trained, path, "--study", study_file) == 2
    assert "column [/red]: '[bold]' is not a number" in capsys.readouterr().err


def test_a_changed_study_is_refused(trained, data, tmp_path, capsys):
    other = tmp_path / "other.py"
    other.write_text(STUDY.replace("0.05", "0.06"))
    assert run("predict", trained, data, "--study", other) == 2
    assert "was trained on: observation was Gaussian(sd=0.05), is" in capsys.readouterr().err
    other.write_text(STUDY.replace("0.6931 /", "0.7 /"))
    assert run("predict", trained, data, "--study", other) == 2
    assert "task has changed in its code" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1/0", "line 1, failed: ZeroDivisionError"),
        ("x = (", "line 1, failed: SyntaxError"),
        ("x = 1", "makes 0 Study objects"),
        ("import sgjax as sg\nsg.simulators.SIR(ts=[2, 1])", "line 2, failed: ValueError"),
    ],
)
def test_a_faulty_study_file_is_named(tmp_path, capsys, text, message):
    path = tmp_path / "faulty.py"
    path.write_text(text)
    assert run("train", path, "--folder", tmp_path / "run") == 2
    assert message in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "run").exists()


def test_resume_goes_on(trained, study_file, capsys):
    # A finished run has nothing left to do but reports again.
    assert run("train", study_file, "--resume", trained) == 0
    assert "Run:" in capsys.readouterr().out


@pytest.mark.slow
def test_demo_writes_what_it_promises(tmp_path, capsys):
    folder = tmp_path / "demo"
    assert run("demo", "--folder", folder, "--steps", "200") == 0
    result = json.loads((folder / "result.json").read_text())
    for mechanism in ("SIR", "SEIR"):
        for name in ("beta", "gamma", "R0", "infectious_period"):
            row = result["estimates"][mechanism][name]
            assert row["q05"] < row["q50"] < row["q95"] and row["sd"] > 0
            assert {"mean", "sd"} <= result["reference"][mechanism][name].keys()
    assert sum(result["mechanisms"].values()) == pytest.approx(1, abs=1e-5)
    assert sum(result["reference_mechanisms"].values()) == pytest.approx(1, abs=1e-5)
    assert len(result["neighbours"]) == 20 and len(result["sensitivity"]) == 2
    assert result["among"] == "among these mechanisms only"
    assert 0.8 < result["calibration"]["R0"]["coverage_90"] < 1
    assert {
        "simulations", "seconds", "compile_seconds", "simulations_per_second", "valid_share"
    } <= result["training"].keys()  # fmt: skip
    assert result["training"]["simulations"] == 200 * 512
    assert (folder / "report.html").stat().st_size > 50_000
    assert (folder / "prior_predictive.png").exists()
