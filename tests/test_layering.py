"""The floors of docs/contributing.md: a unit imports only lower floors; heavy libraries live in one unit each."""

from __future__ import annotations

import ast
import graphlib
import importlib
import inspect
import re
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

from routed_rl.cli.verbs import TRAINING, VERBS

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "routed_rl"

FLOORS = {
    "errors": 0, "shapes": 0,
    "config": 1, "linalg": 1, "artifacts": 1, "console": 1, "stopping": 1, "ranks": 1, "guard": 1, "web": 1,
    "canary": 1, "threads": 1, "importing": 1,
    "exits": 2, "subspace": 2, "routing": 2, "sandbox": 2, "launching": 2,
    "model": 3, "envs": 3, "monitor": 3, "tracking": 3, "sharing": 3,
    "rollout": 4, "checkpoint": 4,
    "extraction": 5, "evaluate": 5, "export": 5,
    "training": 6, "report": 6,
    "pipeline": 7, "inspection": 7,
    "multirun": 8, "audit": 8, "distillation": 8,
    "cli": 9,
}
FRONT = 7
"""The package's own `__init__` hands out what the library is made of; units take nothing from it but `__version__`."""
HEAVY = {
    "trl": {"training", "rollout"},
    "hydra": {"cli"},
    "omegaconf": {"cli", "config"},
    "wandb": {"tracking"},
    "vllm": {"rollout"},
    "deepspeed": {"training", "routing"},
    "peft": {"export", "model"},
    "transformers": {"model", "extraction", "evaluate", "export", "audit", "training", "pipeline", "distillation"},
    "rich": {"console"},
    "jinja2": {"report"},
    "optuna": {"multirun"},
    "pyzipper": {"sharing"},
}
BORROWED = {"routed_rl/envs/adapters/trl_environment.py": {"transformers"}, "routed_rl/inspection/machine.py": {"torch"}}
"""Single files that may import a heavy library, inside a function: without it, it is not loaded (tests/envs/test_adapters.py)."""
LATE = {"trl", "vllm", "wandb", "matplotlib"}
"""Libraries that no verb loads before it needs them; each takes seconds."""
TRAIN = {"train", "resume"}
"""The verbs that build a trainer at once; `rollback` first says all that it can refuse without one."""
NEED = {name: {"trl"} for name in TRAIN} | {"report": {"matplotlib"}}
"""By verb, those of `LATE` without which it has nothing to do: the pictures of a report are drawn by matplotlib."""
WITHOUT_TORCH = {"errors", "config", "envs", "console", "tracking", "report", "inspection", "sharing"}
FILES = sorted(PACKAGE.rglob("*.py"))
PLUGINS = sorted((ROOT / "environments").rglob("*.py"))


def unit_of(file: Path) -> str:
    """`errors`, `routing`, ...; the package's own `__init__` is ""."""
    first = file.relative_to(PACKAGE).parts[0]
    return "" if first == "__init__.py" else first.removesuffix(".py")


@cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


@cache
def imports(file: Path) -> tuple[str, ...]:
    """Every dotted name that a file imports: at any depth, under TYPE_CHECKING, and by a string that names a module of ours."""
    return tuple(_imports(file))


def _imports(file: Path) -> Iterator[str]:
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"routed_rl(\.\w+)+", node.value):
            yield node.value


def own_units(file: Path) -> set[str]:
    """The units of this package that a file imports; `routed_rl.__version__` is no unit."""
    names = {name.split(".")[1] for name in imports(file) if name.startswith("routed_rl.")}
    return {name for name in names if not name.startswith("__")}


def relative(file: Path) -> str:
    return str(file.relative_to(ROOT))


def test_a_unit_imports_only_lower_floors():
    assert {unit_of(file) for file in FILES} == {"", *FLOORS}, "a unit has no floor, or a floor no unit"
    floors = FLOORS | {"": FRONT}
    wrong = [f"{relative(file)} is on floor {floors[unit_of(file)]} and imports {name}, on floor {FLOORS[name]}"
             for file in FILES for name in own_units(file) - {unit_of(file)} if FLOORS[name] >= floors[unit_of(file)]]
    assert wrong == []


def graph(package: Path) -> dict[str, set[str]]:
    """Each module of a package with those of its modules that it imports; the name of an attribute counts as its module."""
    files = {".".join(file.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__"): file
             for file in package.rglob("*.py")}

    def module(name: str) -> str:
        while name and name not in files:
            name = name.rpartition(".")[0]
        return name

    return {name: {found for imported in imports(file) if (found := module(imported)) not in ("", name)}
            for name, file in files.items()}


def circle(package: Path) -> list[str]:
    """One circle of imports among the files of a package, [] where there is none."""
    try:
        graphlib.TopologicalSorter(graph(package)).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def test_no_files_import_each_other():
    assert circle(PACKAGE) == []


@pytest.mark.parametrize("line", ["import routed_rl.b", "def f():\n    from routed_rl import b", "RUN = ['-m', 'routed_rl.b']",
                                  "if TYPE_CHECKING:\n    from routed_rl.b import B"])
def test_a_circle_is_found_however_it_is_imported(tmp_path, line):
    package = tmp_path / "routed_rl"
    package.mkdir()
    (package / "a.py").write_text(line)
    (package / "b.py").write_text("import os\n")
    assert circle(package) == []
    imports.cache_clear()
    tree_of.cache_clear()
    (package / "b.py").write_text("from routed_rl.a import f")
    assert set(circle(package)) == {"routed_rl.a", "routed_rl.b"}


def test_heavy_libraries_live_in_their_units():
    wrong = []
    for file in FILES:
        libraries = {name.split(".")[0] for name in imports(file)} - BORROWED.get(relative(file), set())
        strangers = {name for name in libraries & set(HEAVY) if unit_of(file) not in HEAVY[name]}
        wrong += [f"{relative(file)} imports {name}, which only {sorted(HEAVY[name])} may" for name in strangers]
        if unit_of(file) in WITHOUT_TORCH and "torch" in libraries:
            wrong.append(f"{relative(file)} imports torch")
    assert wrong == []


def at_once(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Every dotted name that these statements import when they run: functions are not entered, nor what is for types alone."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif not isinstance(node, ast.FunctionDef | ast.Lambda) and not (
                isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield from at_once(ast.iter_child_nodes(node))


@cache
def loading(file: Path) -> frozenset[str]:
    return frozenset(at_once(tree_of(file).body))


def loaded(names: Iterable[str]) -> dict[str, list[str]]:
    """The libraries that importing these names loads, each with the chain of our modules that leads to it."""
    files = {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in FILES}
    chains, found = dict[str, list[str]](), dict[str, list[str]]()
    waiting = [(name, list[str]()) for name in names]
    while waiting:
        name, chain = waiting.pop(0)
        if not name.startswith("routed_rl."):
            found.setdefault(name.split(".")[0], chain)
            continue
        parts = name.split(".")
        for module in (".".join(parts[:count]) for count in range(1, len(parts) + 1)):  # a package is imported before its modules
            if module in files and module not in chains:
                chains[module] = [*chain, module]
                waiting += [(each, chains[module]) for each in loading(files[module])]
    return found


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_begins_without_the_libraries_that_only_others_need(verb):
    """What its action imports, and what that imports in turn. Later imports are in the slow test of whole verbs."""
    module = importlib.import_module(f"routed_rl.cli.{VERBS[verb].module}")
    action = ast.parse(inspect.getsource(getattr(module, verb)))
    found = loaded([module.__name__, *(name for node in ast.walk(action) for name in at_once([node]))])
    assert {name: " -> ".join(chain) for name, chain in found.items() if name in LATE - NEED.get(verb, set())} == {}
    assert found.keys() >= NEED.get(verb, set())


def test_only_a_verb_that_trains_in_its_own_process_announces_the_time_that_trl_takes_to_load():
    """`rollback` loads it a little later."""
    assert {name for name, verb in VERBS.items() if verb.says == TRAINING} == TRAIN | {"rollback"}


def test_a_table_or_list_of_names_stands_in_one_file():
    found = defaultdict(list)
    for file in FILES:
        for node in tree_of(file).body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple | ast.List | ast.Set | ast.Dict):
                found[ast.dump(node)].append(relative(file))
    assert [files for files in found.values() if len(files) > 1] == []


def test_environments_import_only_the_contract():
    assert [relative(file) for file in PLUGINS if not own_units(file) <= {"envs", "sandbox"}] == []


def test_what_is_paid_cannot_know_what_is_monitored():
    """No module of `envs` reaches the monitor, the ledger or a subspace, however many imports lie between."""
    edges, reached = graph(PACKAGE), set[str]()
    waiting = [name for name in edges if name.startswith("routed_rl.envs")]
    while waiting:
        reached |= (fresh := edges[waiting.pop()] - reached)
        waiting += fresh
    assert reached and not [name for name in reached if name.split(".")[1] in ("monitor", "routing", "subspace", "tracking")]


def test_every_import_is_a_declared_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [*project["dependencies"], *(item for extra in project["optional-dependencies"].values() for item in extra)]
    declared = {re.split(r"[^\w-]", item)[0].replace("-", "_") for item in listed} | {"routed_rl", "hydra", "yaml"}
    used = {name.split(".")[0] for file in FILES for name in imports(file)} - set(sys.stdlib_module_names)
    assert used <= declared


def words(file: Path) -> Iterator[str]:
    """Names and constants of a file, without docstrings and comments."""
    tree = tree_of(file)
    said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said:
            yield node.value
        for field in ("id", "attr", "arg", "name"):
            if isinstance(value := getattr(node, field, None), str):
                yield value


def test_the_package_does_not_know_the_lab():
    lab = re.compile(r"persona_?lab|\blab\b|smollm|hacker|reasoning_?gym", re.IGNORECASE)
    assert [f"{relative(file)}: {word}" for file in FILES for word in words(file) if lab.search(word)] == []


def test_the_check_for_lab_words_finds_them(tmp_path):
    file = tmp_path / "a.py"
    file.write_text('"""The lab."""\nLAB = "environments/persona_lab"  # the lab\n')
    assert sorted(word for word in words(file) if "lab" in word.lower()) == ["LAB", "environments/persona_lab"]
