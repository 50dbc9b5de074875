"""The house: imports go one way, files stay short, names say something."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "sgjax"
FILES = sorted(PACKAGE.rglob("*.py"))

# In the order data flows: each imports only from those before it.
ORDER = [
    "_types", "_tables", "devices", "priors", "samplers", "solvers", "simulators",
    "observations", "tasks", "_fingerprint", "study", "stream", "losses", "predictors",
    "steppers", "checkpoint", "_interrupt", "faults", "trainer", "training", "held_out",
    "references", "diagnostics", "attribution", "rollout", "mismatch", "identifiability",
    "datasets", "studies", "reading", "analysis", "_page", "_drawing", "plots",
    "rollout_plots", "_sections", "_nearest_section", "report", "diagnosis_page", "runs", "display",
    "rollout_demo", "_startup", "cli",
]  # fmt: skip


def module_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sgjax"):
            parts = (node.module or "").split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {
                alias.name.split(".")[1] for alias in node.names if alias.name.startswith("sgjax.")
            }
    return found


def test_every_module_has_its_place():
    assert {module_of(path) for path in FILES} - {"__init__"} == set(ORDER)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    module = module_of(path)
    if module == "__init__":
        return
    place = ORDER.index(module)
    above = {name for name in imports(path) if ORDER.index(name) > place}
    assert not above, f"{module} imports {sorted(above)}, which come after it"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_are_short_and_say_what_they_are(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "the first line of a file says what it is for"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= 60, f"{node.name} has {length} lines"
