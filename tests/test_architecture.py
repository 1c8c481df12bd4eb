"""The shape of the package, read from its imports."""

from __future__ import annotations

import ast
import importlib
import tomllib
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "abliterate"
# Each room imports what stands before it; a room inside another may have a place of its own.
ORDER: tuple[str, ...] = (
    "errors",
    "terminal",
    "files",
    "config",
    "prompts",
    "model",
    "compute",
    "runs",
    "outcomes",
    "replies",
    "measures",
    "outcomes.judges",
    "directions",
    "checkpoint",
    "choice",
    "report",
    "publishing",
    "forecast",
    "commands",
    "api",
    "cli",
    "__main__",
)
HEAVY = {"torch", "transformers"}


def name_of(file: Path) -> str:
    """``abliterate.compute.hooks`` of a file; a package's own name of its ``__init__.py``."""
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(file): file for file in sorted(PACKAGE.rglob("*.py"))}
TOP_LEVEL_ONLY = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def statements(tree: ast.AST, whole: bool) -> list[ast.Import | ast.ImportFrom]:
    """Import statements: all, or those that run when the module is imported."""
    found: list[ast.Import | ast.ImportFrom] = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.append(node)
        elif whole or not (isinstance(node, TOP_LEVEL_ONLY) or is_for_types(node)):
            found += statements(node, whole)
    return found


@cache
def imports(module: str, whole: bool = True) -> frozenset[str]:
    """Names of the modules that a module imports; names imported from a package count as its modules where they are."""
    found: set[str] = set()
    for node in statements(ast.parse(MODULES[module].read_text(encoding="utf-8")), whole):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
            continue
        assert node.level == 0, f"{module} imports relatively"
        source = str(node.module)
        inner = {f"{source}.{alias.name}" for alias in node.names} & MODULES.keys()
        found |= inner if inner and source == "abliterate" else inner | {source}
    return frozenset(found)


@cache
def loaded_by(module: str) -> frozenset[str]:
    """Everything that importing a module imports, through the package's own modules."""
    todo, seen = [module], {module}
    while todo:
        found = set(imports(todo.pop(), False))
        found |= {".".join(name.split(".")[:i]) for name in found for i in range(1, name.count(".") + 1)}
        todo += [name for name in found - seen if name in MODULES]
        seen |= found
    return frozenset(seen)


def room(module: str) -> str:
    """The room of a module: the longest of the names in the order that its own begins with."""
    inner = module.removeprefix("abliterate.")
    return max((name for name in ORDER if inner == name or inner.startswith(f"{name}.")), key=len, default=inner.split(".")[0])


def test_every_room_has_its_place_in_the_order() -> None:
    assert {room(m) for m in MODULES if m != "abliterate"} == set(ORDER)


@pytest.mark.parametrize("module", [m for m in MODULES if m != "abliterate"])
def test_imports_go_to_the_same_room_or_to_one_before_it(module: str) -> None:
    others = {room(i) for i in imports(module) if i.startswith("abliterate.")} - {room(module)}
    assert [other for other in sorted(others) if ORDER.index(other) >= ORDER.index(room(module))] == []


def test_a_command_is_called_by_the_command_line_alone() -> None:
    """But for ``reproduce``, which runs three of them again."""
    callers = {m for m in MODULES for other in imports(m) if other.startswith("abliterate.commands.") and room(m) == "commands"}
    between = {m for m in callers if any(o.startswith("abliterate.commands.") and o.split(".")[2] != m.split(".")[2] for o in imports(m))}
    assert between == {"abliterate.commands.reproduce"}


def test_only_tests_use_no_module() -> None:
    """Every module is imported by another, or is where the program begins."""
    used = {other for m in MODULES for other in imports(m)}
    unused = {m for m, file in MODULES.items() if m not in used and file.name != "__init__.py"}
    assert unused == {"abliterate.__main__", "abliterate.cli.main"} - used


def test_no_folder_holds_more_than_20_modules() -> None:
    counts = Counter(file.parent for file in MODULES.values() if file.name != "__init__.py")
    assert {folder.name: n for folder, n in counts.items() if n > 20} == {}


def test_the_top_level_has_at_most_20_entries() -> None:
    beside = {"__init__.py", "__main__.py", "__pycache__", "py.typed"}
    assert len({entry.name for entry in PACKAGE.iterdir()} - beside) <= 20


def test_the_package_itself_imports_nothing_of_its_own_until_it_is_looked_up() -> None:
    assert imports("abliterate", False) == {"importlib", "typing"}


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("abliterate.report")])
def test_the_report_imports_no_torch(module: str) -> None:
    assert not {name.split(".")[0] for name in imports(module)} & HEAVY
    assert not loaded_by(module) & HEAVY


@pytest.mark.parametrize(
    "module", ["cli.main", "cli.options", "config", "__main__", "errors", "terminal.progress", "files", "prompts.read", "prompts.split"]
)
def test_what_is_read_before_a_command_starts_loads_neither_torch_nor_transformers(module: str) -> None:
    assert not loaded_by(f"abliterate.{module}") & HEAVY


def test_modules_within_a_room_import_each_other_in_no_circle() -> None:
    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path, module])
        for other in imports(module) & MODULES.keys() - done:
            visit(other, (*path, module))
        done.add(module)

    done: set[str] = {"abliterate"}
    for name in MODULES:
        visit(name, ())


@pytest.mark.parametrize("folder", ["prompts", "outcomes", "measures", "forecast", "replies", "report"])
def test_no_code_names_a_language(folder: str) -> None:
    """But for the default one; what depends on a language is in its data file."""
    files = list(PACKAGE.glob("prompts/languages/*.toml"))
    named = {text for file in files for text in (file.stem, tomllib.loads(file.read_text(encoding="utf-8"))["name"])}
    modules = {m: file for m, file in MODULES.items() if m.startswith(f"abliterate.{folder}")}
    trees = {m: ast.parse(file.read_text(encoding="utf-8")) for m, file in modules.items()}
    found = {m: {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and n.value in named} for m, tree in trees.items()}
    default = {"abliterate.prompts.languages.record": {"en"}} if folder == "prompts" else {}
    assert {m: texts for m, texts in found.items() if texts} == default


def test_no_module_is_named_utils() -> None:
    assert [m for m in MODULES if m.split(".")[-1] in {"util", "utils", "helpers", "misc", "common"}] == []


def test_no_module_is_longer_than_400_lines() -> None:
    lengths = {m: len(file.read_text(encoding="utf-8").splitlines()) for m, file in MODULES.items()}
    assert {m: n for m, n in lengths.items() if n > 400} == {}


def test_torch_is_seen_where_it_is_loaded() -> None:
    assert "torch" in loaded_by("abliterate.commands.run")
    assert "abliterate.commands.run" in imports("abliterate.cli.commands")
    assert "abliterate.commands.run" not in imports("abliterate.cli.commands", False)


SCRIPTS = sorted((PACKAGE.parent / "scripts").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_what_a_script_imports_of_the_package_is_there(script: Path) -> None:
    """Also inside functions, which only run where something is measured."""
    wanted = [s for s in statements(ast.parse(script.read_text()), whole=True) if isinstance(s, ast.ImportFrom)]
    own = [(s.module, alias.name) for s in wanted if s.module and s.module.startswith("abliterate") for alias in s.names]
    missing = [pair for pair in own if not hasattr(importlib.import_module(pair[0]), pair[1]) and ".".join(pair) not in MODULES]
    assert not missing


def test_no_two_test_modules_have_one_name() -> None:
    """pytest imports them by their bare names."""
    names = [file.name for file in Path(__file__).parent.rglob("test_*.py")]
    assert sorted(set(names)) == sorted(names)
