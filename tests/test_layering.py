"""The floors of design.md section 5: a unit imports only lower floors; heavy libraries live in one unit each."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "routed_rl"

FLOORS = {
    "errors": 0,
    "config": 1, "linalg": 1, "artifacts": 1, "console": 1, "stopping": 1,
    "subspace": 2, "routing": 2, "sandbox": 2, "launching": 2,
    "model": 3, "envs": 3, "monitor": 3, "tracking": 3,
    "rollout": 4, "checkpoint": 4,
    "extraction": 5, "evaluate": 5, "export": 5,
    "training": 6, "report": 6, "audit": 6,
    "pipeline": 7, "inspection": 7,
    "jobs": 8,
    "compare": 9, "sweep": 9, "calibrate": 9,
    "cli": 10,
}
HEAVY = {
    "trl": {"training", "rollout"},
    "hydra": {"cli"},
    "omegaconf": {"cli"},
    "wandb": {"tracking"},
    "vllm": {"rollout"},
    "deepspeed": {"training"},
    "peft": {"export"},
    "transformers": {"model", "extraction", "evaluate", "export", "audit", "training", "pipeline"},
    "rich": {"console"},
    "jinja2": {"report"},
    "optuna": {"sweep"},
}
BORROWED = {"routed_rl/envs/adapters/trl_environment.py": {"transformers"}}
"""Single files that may import a heavy library, inside a function: without it, it is not loaded (tests/envs/test_adapters.py)."""
WITHOUT_TORCH = {"errors", "config", "envs", "console", "tracking", "report", "inspection"}
FILES = sorted(PACKAGE.rglob("*.py"))
PLUGINS = sorted((ROOT / "environments").rglob("*.py"))


def unit_of(file: Path) -> str:
    """`errors`, `routing`, ...; the package's own `__init__` is "", below every floor."""
    first = file.relative_to(PACKAGE).parts[0]
    return "" if first == "__init__.py" else first.removesuffix(".py")


def imports(file: Path) -> Iterator[str]:
    """Every dotted name a file imports, at whatever depth and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_units(file: Path) -> set[str]:
    """The units of this package that a file imports; `routed_rl.__version__` is no unit."""
    names = {name.split(".")[1] for name in imports(file) if name.startswith("routed_rl.")}
    return {name for name in names if not name.startswith("__")}


def relative(file: Path) -> str:
    return str(file.relative_to(ROOT))


@pytest.mark.parametrize("file", FILES, ids=relative)
def test_a_unit_imports_only_lower_floors(file):
    unit = unit_of(file)
    assert unit == "" or unit in FLOORS, f"{unit} has no floor; design.md section 5 lists them"
    floor = FLOORS.get(unit, -1)
    wrong = {name for name in own_units(file) - {unit} if FLOORS[name] >= floor}
    assert not wrong, f"{relative(file)} is on floor {floor} and imports {', '.join(sorted(wrong))}"


@pytest.mark.parametrize("file", FILES, ids=relative)
def test_heavy_libraries_live_in_their_units(file):
    libraries = {name.split(".")[0] for name in imports(file)}
    wrong = {name for name in libraries & set(HEAVY) if unit_of(file) not in HEAVY[name]} - BORROWED.get(relative(file), set())
    assert not wrong, f"{relative(file)} imports {', '.join(sorted(wrong))}; only {[sorted(HEAVY[name]) for name in wrong]} may"
    if unit_of(file) in WITHOUT_TORCH:
        assert "torch" not in libraries


@pytest.mark.parametrize("file", PLUGINS, ids=relative)
def test_environments_import_only_the_contract(file):
    assert own_units(file) <= {"envs", "sandbox"}


def test_every_import_is_a_declared_dependency():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [*project["dependencies"], *(item for extra in project["optional-dependencies"].values() for item in extra)]
    declared = {re.split(r"[^\w-]", item)[0].replace("-", "_") for item in listed} | {"routed_rl", "hydra", "yaml"}
    used = {name.split(".")[0] for file in FILES for name in imports(file)} - set(sys.stdlib_module_names)
    assert used <= declared


def words(file: Path) -> Iterator[str]:
    """Names and constants of a file, without docstrings and comments."""
    tree = ast.parse(file.read_text())
    said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said:
            yield node.value
        for field in ("id", "attr", "arg", "name"):
            if isinstance(value := getattr(node, field, None), str):
                yield value


@pytest.mark.parametrize("file", FILES, ids=relative)
def test_the_package_does_not_know_the_lab(file):
    lab = re.compile(r"persona_?lab|\blab\b|smollm|hacker|reasoning_?gym", re.IGNORECASE)
    assert [word for word in words(file) if lab.search(word)] == []


def test_the_check_for_lab_words_finds_them(tmp_path):
    file = tmp_path / "a.py"
    file.write_text('"""The lab."""\nLAB = "environments/persona_lab"  # the lab\n')
    assert sorted(word for word in words(file) if "lab" in word.lower()) == ["LAB", "environments/persona_lab"]
