"""What clusters and users do to jobs: told to stop, killed, started twice; to the same numbers."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from test_cli import STUDY

from sgjax.runs import Session, Source
from sgjax.studies import Preset

GRACE = 30
"""Seconds that schedulers give between SIGTERM and SIGKILL, unless told otherwise."""

PRESET = Preset(num_steps=8_000, batch_size=32, width=16, depth=1)

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    """A run before its first update: copies of it are one and the same run."""
    root = tmp_path_factory.mktemp("survival")
    (root / "study.py").write_text(STUDY)
    Session.start(Source.find(str(root / "study.py")), PRESET, 0, root / "sgjax-runs" / "begun")
    return root / "sgjax-runs" / "begun"


@pytest.fixture(scope="module")
def undisturbed(begun) -> list[np.ndarray]:
    folder = shutil.copytree(begun, begun.parents[1] / "undisturbed")
    session = Session.open(folder, folder / "study.py")
    session.train()
    assert session.totals["steps"] == PRESET.num_steps
    return weights(folder)


def weights(folder: Path) -> list[np.ndarray]:
    predictor = Session.open(folder, folder / "study.py").predictor()
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(predictor.network))]


def start(*arguments: object, cwd: Path, first: str = "") -> subprocess.Popen:
    package = Path(__file__).parent.parent
    environment = os.environ | {
        "PYTHONPATH": str(package),
        "JAX_COMPILATION_CACHE_DIR": os.environ["SGJAX_TEST_CACHE"],
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        # On other numbers of devices sums are of another order.
        "JAX_NUM_CPU_DEVICES": str(jax.device_count()),
    }
    code = f"{first}\nfrom sgjax.cli import main; main()"
    command = [sys.executable, "-u", "-c", code, *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip


def after_some_steps(process: subprocess.Popen) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step "):
            return
    raise AssertionError(process.stderr and process.stderr.read())


def test_told_to_stop_killed_and_resumed_is_undisturbed(begun, undisturbed, tmp_path):
    runs = tmp_path / "sgjax-runs"
    folder = shutil.copytree(begun, runs / "this")
    resume = ("train", folder / "study.py", "--resume")
    for _ in range(2):
        process = start(*resume, cwd=tmp_path)  # it finds the latest run itself
        after_some_steps(process)
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=GRACE)
        assert process.returncode == 0, errors
        assert "everything up to it is kept" in output and "Traceback" not in errors
    process = start(*resume, folder, "--save-steps", 100, cwd=tmp_path)
    after_some_steps(process)
    process.kill()
    process.communicate()
    # The second is refused while one runs, with one message.
    process = start(*resume, folder, cwd=tmp_path)
    after_some_steps(process)
    process.send_signal(signal.SIGSTOP)  # so that it is not done before the second has begun
    second = start(*resume, folder, cwd=tmp_path)
    _, errors = second.communicate()
    process.send_signal(signal.SIGCONT)
    assert second.returncode == 2 and f"process {process.pid}" in errors
    assert errors.count("\n") == 1
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    for one, other in zip(weights(folder), undisturbed, strict=True):
        np.testing.assert_array_equal(one, other)
    totals = Session.open(folder, folder / "study.py").totals
    assert totals["steps"] == PRESET.num_steps


def test_a_second_signal_stops_at_once(begun, tmp_path):
    folder = shutil.copytree(begun, tmp_path / "run")
    process = start("train", folder / "study.py", "--resume", folder, cwd=tmp_path)
    after_some_steps(process)
    process.send_signal(signal.SIGSTOP)  # so that both are there before it can act
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=GRACE)
    assert process.returncode in (0, -signal.SIGTERM)


@pytest.mark.parametrize("limit", [2_000, 20_000])
def test_a_disk_that_takes_no_more_is_one_message(begun, tmp_path, limit):
    # A limit on the size of files fails like a full disk: in the middle of a write, of a state
    # or, where there is room for those, of the log.
    folder = shutil.copytree(begun, tmp_path / "run")
    process = start(
        "train", folder / "study.py", "--resume", folder, "--save-steps", 1000, cwd=tmp_path,
        first=f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))",
    )  # fmt: skip
    _, errors = process.communicate()
    assert process.returncode == 2
    assert "Traceback" not in errors and errors.count("Free space") == 1
    # With room again it goes on.
    again = start("train", folder / "study.py", "--resume", folder, cwd=tmp_path)
    after_some_steps(again)
    again.send_signal(signal.SIGTERM)
    again.communicate(timeout=GRACE)
    assert again.returncode == 0
