"""The README's examples run as they stand, at toy size."""

import re
from pathlib import Path

import jax
import pytest

import sgjax

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def ten_lines() -> dict:
    """What the first example leaves behind."""
    (block,) = re.findall(r"```python\n(import jax.*?)```", README, re.DOTALL)
    for large, small in (
        ("batch_size=512", "batch_size=64"),
        ("num_steps=5_000", "num_steps=20"),
        ("num_simulations=100_000", "num_simulations=640"),
        ("stream, posterior)\n", "stream, posterior, num_simulations=640)\n"),
    ):
        assert large in block
        block = block.replace(large, small)
    space: dict = {}
    exec(block, space)
    return space


def test_the_ten_lines_run(capsys):
    space = ten_lines()
    assert "R0" in capsys.readouterr().out
    assert len(space["neighbours"].ids) == 20
    assert 0 < space["mismatch"].p_value <= 1


@pytest.mark.slow
def test_the_lines_on_attribution_run(capsys):
    (block,) = re.findall(r"```python\n(index = .*?)```", README, re.DOTALL)
    large = "num_simulations=300_000, progress=True"
    assert large in block
    exec(block.replace(large, "num_simulations=640"), ten_lines())
    assert "beta: " in capsys.readouterr().out


@pytest.mark.slow
def test_the_lines_on_learned_simulators_run(capsys):
    (block,) = re.findall(
        r"```python\n(from numpyro import distributions.*?)```", README, re.DOTALL
    )
    for large, small in (
        ("num_steps=4_000", "num_steps=20"),
        ("jax.random.key(2))", "jax.random.key(2), courses=4, stored=32)"),
    ):
        assert large in block
        block = block.replace(large, small)
    space: dict = {"sg": sgjax, "jax": jax}
    exec(block, space)
    assert space["course"].shape == (400, 3)
    assert "nearest simulation" in capsys.readouterr().out


def test_commands_of_the_readme_exist():
    for command in ("demo", "list", "train", "predict", "explain", "check"):
        assert f"sgjax {command}" in README
