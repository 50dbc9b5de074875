"""The notebooks run as they stand, at toy size, and show what they found."""

import json
import re
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
TRAINING = (
    (r"num_steps=[\d_]+, interval=[\d_]+", "num_steps=20, interval=10"),
    (r"batch_size=\d+", "batch_size=32"),
    (r"width=\d+", "width=16"),
)
SMALLER = {
    "census": (
        *TRAINING,
        (r"num_simulations=[\d_]+", "num_simulations=640"),
        (r"(jax.random.key\(3\)), \d+", r"\1, 512"),
    ),
    "mechanisms": (
        *TRAINING,
        (r"num_simulations=[\d_]+", "num_simulations=4096"),
        (r"count = \d+", "count = 8"),
        (r"(key\(4\))", r"\1, values=4, starts=1"),
    ),
    "outbreak": (
        *TRAINING,
        (r"num_simulations=[\d_]+", "num_simulations=4096"),
        (r"grid=\([\d, ]+\)", "grid=(100, 400)"),
        (r"num_held_out=\d+", "num_held_out=100"),
    ),
    "posterior": (
        *TRAINING,
        (r"num_simulations=[\d_]+", "num_simulations=100"),
        (r"(key\(3\)), num_samples=[\d_]+", r"\1, num_samples=4096"),
        (r"(key\(4\)),\s+num_samples=[\d_]+", r"\1, num_samples=4096"),
    ),
}


def cells(path: Path) -> list[dict]:
    every = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in every if cell["cell_type"] == "code"]


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*Do not trust it:UserWarning")  # a toy network's correction
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, capsys):
    code = "\n".join("".join(cell["source"]) for cell in cells(path))
    code = re.sub(r"(?m)^%.*$", "", code)
    for large, small in SMALLER[path.stem]:
        code, count = re.subn(large, small, code)
        assert count == 1, large
    exec(code, {})
    assert "90 % from" in capsys.readouterr().out


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_shows_what_it_found(path):
    outputs = [output for cell in cells(path) for output in cell["outputs"]]
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert "image/png" in kinds
    assert all(output["output_type"] != "error" for output in outputs)
    assert all(output.get("name") != "stderr" for output in outputs)
