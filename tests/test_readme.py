"""The README's example runs as it stands, at toy size."""

import re
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_ten_lines_run(capsys):
    (block,) = re.findall(r"```python\n(import jax.*?)```", README, re.DOTALL)
    for large, small in (
        ("batch_size=512", "batch_size=64"),
        ("num_steps=5_000", "num_steps=20"),
        ("num_simulations=100_000", "num_simulations=640"),
        ("posterior)\n", "posterior)\n"),
    ):
        assert large in block
        block = block.replace(large, small)
    space: dict = {}
    exec(block.replace("stream, posterior)", "stream, posterior, num_simulations=640)"), space)
    assert "R0" in capsys.readouterr().out
    assert len(space["neighbours"].ids) == 20
    assert 0 < space["mismatch"].p_value <= 1


def test_commands_of_the_readme_exist():
    for command in ("demo", "list", "train", "predict", "explain", "check"):
        assert f"sgjax {command}" in README
