"""The demo of learned simulators at toy size, and pictures of rollouts that may have diverged."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sgjax import cli, rollout_demo
from sgjax.rollout import RolloutReport, Scales, evaluate_rollout
from sgjax.rollout.protocol import World
from sgjax.rollout_plots import animate, draw_errors, draw_statistics

TOY = rollout_demo.Sizes(
    steps=20, batch_size=4, width=8, depth=1, frames=6, judged_steps=20, courses=4, stored=64,
    pictures=5,
)  # fmt: skip
PICTURES = ("errors.png", "statistics.png", "rollout.gif")


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setattr(cli, "set_up", lambda: None)  # tests leave no trace in the user's folder
    patch.setattr(rollout_demo, "SIZES", TOY)
    yield
    patch.undo()


def run(*arguments) -> int:
    try:
        cli.main(["demo", *map(str, arguments)])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "rollout"
    assert run("rollout", "--folder", folder, "--steps", 10, "--seed", 3) == 0
    return folder


@pytest.fixture(scope="module")
def diverged() -> RolloutReport:
    """Two worlds of three channels; of the learned rollouts one ends, one explodes, one is lost."""
    rng = np.random.default_rng(0)
    scales = Scales(np.zeros(3), np.ones(3), dt=0.1, lyapunov_time=0.5)
    worlds, predicted, rows = {}, {}, []
    for name in ("as trained", "outside"):
        whole = rng.normal(size=(4, 13, 3)).cumsum(axis=1)
        frames, truth = whole[:, :1], whole[:, 1:]
        nothing = np.zeros((4, 12, 0))
        worlds[name] = World({}, frames, truth, truth, nothing[:, 0], nothing)
        learned = truth + 0.3
        learned[0, 5:] = np.nan
        learned[1] *= 10.0 ** np.arange(0, 300, 25)[:, None]
        learned[2] = np.inf
        predicted[name] = {"its solver": truth, "another": truth + 1.0, "learned": learned}
        for model, made in predicted[name].items():
            found = evaluate_rollout(made, truth, scales) | {"one step": None}
            rows.append({"world": name, "model": model, **found})
    return RolloutReport(rows, scales, worlds, predicted)


def pictures_of(path: Path) -> list[np.ndarray]:
    with Image.open(path) as gif:
        found = []
        for index in range(getattr(gif, "n_frames", 1)):
            gif.seek(index)
            found.append(np.asarray(gif.convert("RGB")))
    return found


def test_the_demo_writes_what_it_promises(made):
    assert {path.name for path in made.iterdir()} == {*PICTURES, "rollout.json"}
    pictures = pictures_of(made / "rollout.gif")
    assert len(pictures) == TOY.pictures
    for before, after in itertools.pairwise(pictures):
        assert (before != after).any()
    for name in ("errors.png", "statistics.png"):
        with Image.open(made / name) as picture:
            assert np.asarray(picture.convert("L")).std() > 5


def test_the_demo_keeps_the_table_and_what_it_was_made_with(made):
    result = json.loads((made / "rollout.json").read_text())
    models = {"learned", "its solver", "persistence", "linear", "nearest simulation"}
    for world in ("as trained", "rho outside (31 to 33)"):
        assert {row["model"] for row in result["rows"] if row["world"] == world} == models
    assert all(len(row["valid times"]["0.4"]) == 3 for row in result["rows"])
    assert result["seed"] == 3 and result["options"]["steps"] == 10
    assert result["training"]["simulations"] == 10 * TOY.batch_size
    assert {"jax", "sgjax", "python"} <= result["versions"].keys()


def test_an_existing_folder_is_refused_before_any_work(made, capsys):
    before = sorted(path.name for path in made.iterdir())
    assert run("rollout", "--folder", made) == 2
    error = capsys.readouterr().err
    assert "exists already" in error and "Traceback" not in error
    assert sorted(path.name for path in made.iterdir()) == before


def test_a_mistake_or_ctrl_c_leaves_no_empty_folder(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "new"
    assert run("rollout", "--folder", folder, "--steps", 0) == 2
    assert "--steps must be positive" in capsys.readouterr().err

    def pressed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(rollout_demo.steppers, "for_study", pressed)
    assert run("rollout", "--folder", folder) == 130
    assert "Stopped." in capsys.readouterr().out
    assert not folder.exists()


def test_ctrl_c_in_training_says_nothing_of_what_is_kept(unchecked, tmp_path, monkeypatch, capsys):
    def told(*_, **__):
        raise rollout_demo.Interrupted(None, 7)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(rollout_demo.steppers, "for_study", lambda *_, **__: None)
    monkeypatch.setattr(rollout_demo, "train", told)
    assert run("rollout", "--folder", tmp_path / "new") == 130
    shown = capsys.readouterr().out
    assert "Stopped." in shown and "kept" not in shown


def test_rollouts_that_diverged_are_drawn(diverged, tmp_path):
    for figure in (draw_errors(diverged), draw_statistics(diverged, ("x", "y", "z"))):
        figure.savefig(tmp_path / "figure.png")
        assert (tmp_path / "figure.png").stat().st_size > 10_000
    for course in range(4):
        path = tmp_path / f"{course}.gif"
        animate(diverged, path, world="outside", course=course, plane=(0, 2), frames=3)
        assert len(pictures_of(path)) == 3


def test_channels_that_are_not_there_are_refused(diverged, tmp_path):
    with pytest.raises(ValueError, match="there are 3 channels"):
        animate(diverged, tmp_path / "no.gif", plane=(0, 3))
    assert not (tmp_path / "no.gif").exists()


def test_errors_are_drawn_to_scale(diverged):
    """The line of a model that is everywhere wrong by one deviation lies at one."""
    axes = draw_errors(diverged).axes[0]
    heights = [np.asarray(line.get_ydata(), float) for line in axes.lines]
    assert sum(bool(np.allclose(line, 1.0)) for line in heights) == 1
    assert any(np.allclose(line, 0.4) for line in heights)
    times = np.asarray(axes.lines[0].get_xdata(), float)
    assert times[0] == pytest.approx(0.2) and times[-1] == pytest.approx(2.4)
    assert axes.get_yscale() == "log"
