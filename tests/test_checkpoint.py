"""States on disk: what is kept, what is recognised as damaged, and that reading runs no code."""

import errno
import gc
import json
import pickle
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgjax.checkpoint import (
    Checkpointer,
    RunError,
    _checkpointer,
    fault_of,
    latest_run,
    sha256,
    write_json,
)


class State(NamedTuple):
    step: jax.Array
    weights: jax.Array


def state(step: int) -> State:
    return State(jnp.asarray(step, jnp.int32), jnp.full(50, step, jnp.float32))


def fill(folder: Path, *steps: int, **options) -> None:
    keeper = Checkpointer(folder, every_seconds=0.0, **options)
    for step in steps:
        keeper.save(state(step))
    keeper.wait()
    keeper.close()


def restored(folder: Path, create: bool = True) -> tuple[int | None, list[str]]:
    told: list[str] = []
    keeper = Checkpointer(folder, create=create, tell=told.append)
    try:
        found = keeper.restore(state(0))
    finally:
        keeper.close()
    if found is None:
        return None, told
    np.testing.assert_array_equal(found.weights, np.full(50, found.step))
    return int(found.step), told


@pytest.fixture
def folder(tmp_path):
    fill(tmp_path / "states", 10, 20, 30, keep=3)
    return tmp_path / "states"


def a_data_file(folder: Path) -> Path:
    return max(folder.rglob("d/*"), key=lambda path: path.stat().st_size)


def test_a_state_returns_as_it_was(folder):
    assert restored(folder) == (30, [])
    assert restored(folder, create=False) == (30, [])


def test_the_last_and_the_best_are_kept(tmp_path):
    scores = {10: 3.0, 20: 1.0, 30: 2.0, 40: float("nan"), 50: 2.5}
    options = {"keep": 2, "every_seconds": 0.0}
    keeper = Checkpointer(tmp_path / "states", score=lambda s: scores[int(s.step)], **options)
    for step in scores:
        keeper.save(state(step))
    keeper.wait()
    assert keeper.steps == [20, 40, 50]
    assert keeper.scores == {20: 1.0, 50: 2.5} and keeper.best_step == 20
    assert int(keeper.restore(state(0), keeper.best_step).step) == 20
    keeper.close()


def test_states_are_kept_by_steps_and_by_force(tmp_path):
    keeper = Checkpointer(tmp_path / "states", every_seconds=1e9, every_steps=20, keep=9)
    for step in (10, 20, 30, 40):
        keeper.save(state(step))
    keeper.save(state(50), force=True)
    keeper.save(state(50), force=True)  # there already
    assert keeper.steps == [20, 40, 50]
    keeper.close()
    with pytest.raises(ValueError, match="keep"):
        Checkpointer(tmp_path / "states", keep=0)


def test_training_may_go_on_in_the_buffers_of_a_state_being_written(tmp_path):
    keeper = Checkpointer(tmp_path / "states", every_seconds=0.0)
    advance = jax.jit(lambda s: State(s.step + 1, s.weights + 1), donate_argnums=0)
    now = state(5)
    for _ in range(4):
        keeper.save(now)
        now = advance(now)
    keeper.wait()
    keeper.close()
    assert restored(tmp_path / "states") == (8, [])


def truncate(step: Path):
    path = a_data_file(step)
    path.write_bytes(path.read_bytes()[:-1])


def flip(step: Path):
    path = a_data_file(step)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def lose(step: Path):
    a_data_file(step).unlink()


def plant(step: Path):
    (step / "weights.pkl").write_bytes(b"\x80\x04.")


def garble(step: Path):
    (step / "manifest.json").write_text('{"score": 1, "files"')


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (truncate, "truncated or altered"),
        (flip, "truncated or altered"),
        (lose, "is missing"),
        (plant, "does not belong"),
        (garble, "manifest.json cannot be read"),
    ],
)
def test_a_damaged_state_is_told_and_the_one_before_is_used(folder, damage, words):
    damage(folder / "30")
    used, told = restored(folder, create=False)  # a reader leaves everything as it is
    assert used == 20 and len(told) == 1 and "\n" not in told[0]
    assert "step 30 is not intact" in told[0] and words in told[0] and "step 20 is used" in told[0]
    assert (folder / "30").is_dir()
    assert restored(folder)[0] == 20
    assert (folder / "damaged-30").is_dir()  # nothing is thrown away
    fill(folder, 30)  # training comes by again
    assert restored(folder) == (30, [])


def test_a_state_that_was_never_sealed_is_passed_over(folder):
    (folder / "30" / "manifest.json").unlink()
    keeper = Checkpointer(folder, create=False)
    assert keeper.latest_step == 20
    keeper.close()
    assert restored(folder)[0] == 20
    for step in ("10", "20"):
        (folder / step / "manifest.json").unlink()
    used, told = restored(folder)
    assert used is None and "starts anew" in told[0]


def test_a_state_half_deleted_is_cleared_away(folder):
    (folder / "10" / "manifest.json").unlink()
    fill(folder, 40, keep=2)
    assert sorted(path.name for path in folder.iterdir() if path.name.isdigit()) == ["30", "40"]


def test_none_intact_is_one_error_with_the_remedy(folder):
    for step in ("10", "20", "30"):
        truncate(folder / step)
    with pytest.raises(RunError, match=r"No checkpoint .* is intact .*train again"):
        restored(folder)
    assert (folder / "30").is_dir()
    keeper = Checkpointer(folder)
    with pytest.raises(RunError, match="intact"):
        keeper.restore(state(0), 20)
    keeper.close()


class Planted:
    """Unpickling it leaves a trace."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return (Path.touch, (self.trace,))


def test_a_planted_pickle_is_never_loaded(tmp_path, monkeypatch):
    # What a failed read of orbax leaves behind complains of a loop that is gone.
    monkeypatch.setattr(sys, "unraisablehook", lambda told: None)
    trace = tmp_path / "executed"
    poison = pickle.dumps(Planted(trace))
    pickle.loads(poison)
    assert trace.exists()  # it would work
    trace.unlink()
    fill(tmp_path / "clean", 10, 20)
    names = [p.relative_to(tmp_path / "clean" / "20") for p in _files(tmp_path / "clean" / "20")]
    for number, name in enumerate(names):
        if name.name == "manifest.json":
            continue
        folder = tmp_path / f"poisoned-{number}"
        shutil.copytree(tmp_path / "clean", folder)
        (folder / "20" / name).write_bytes(poison)
        assert restored(folder, create=False)[0] == 10
        # Whoever plants a file can forge the manifest too: it is no signature, yet nothing runs.
        _forge_manifest(folder / "20")
        assert fault_of(folder / "20") is None
        try:
            restored(folder, create=False)
        except RunError as error:
            assert "\n" not in str(error)
        assert not trace.exists()
    gc.collect()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _forge_manifest(step: Path) -> None:
    names = {path.relative_to(step).as_posix(): path for path in _files(step)}
    files = {name: sha256(path) for name, path in names.items() if name != "manifest.json"}
    write_json(step / "manifest.json", {"score": None, "files": files})


def test_a_full_disk_is_one_error_and_earlier_states_stay(folder, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    keeper = Checkpointer(folder, every_seconds=0.0, keep=3)
    monkeypatch.setattr(_checkpointer, "write_manifest", full)
    keeper.save(state(40))
    message = r"step 40 could not be written .*No space left.* step 30 is intact\. Free space"
    with pytest.raises(RunError, match=message):
        keeper.wait()
    monkeypatch.undo()
    keeper.save(state(50), force=True)  # room again
    keeper.close()
    assert restored(folder) == (50, [])


def test_a_json_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    write_json(path, {"a": 1})

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError):
        write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1} and list(tmp_path.iterdir()) == [path]


def test_the_latest_run_is_the_one_begun_last(tmp_path):
    with pytest.raises(RunError, match="no run under"):
        latest_run(tmp_path)
    for name, study, begun in [("b", "sir", "09"), ("a", "sir", "10"), ("c", "other", "11")]:
        (tmp_path / name).mkdir()
        settings = {"study": {"name": study}, "created": f"2025-01-01T00:{begun}:00"}
        write_json(tmp_path / name / "run.json", settings)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "run.json").write_text("{")
    assert latest_run(tmp_path) == tmp_path / "c"
    assert latest_run(tmp_path, "sir") == tmp_path / "a"
    with pytest.raises(RunError, match="no run of seir"):
        latest_run(tmp_path, "seir")
