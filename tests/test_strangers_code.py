"""No code of a stranger's is run unasked: every call that could says so, read from the source."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [file for folder in ("abliterate", "scripts") for file in sorted((ROOT / folder).rglob("*.py"))]
LOADS = {"from_pretrained", "from_config", "load_dataset", "pipeline", "LLM"}  # what can run code that comes with a model or a data set
NO_CODE = {"GenerationConfig", "PeftModel"}  # they read JSON and safetensors alone, whatever they are told
NO_WEIGHTS = {"AutoConfig", "AutoTokenizer"}
PICKLES = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
EXECUTE = {"eval", "exec", "compile", "__import__"}
UNSAFE = {"os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "torch.hub.load", "torch.jit.load"}

Found = Iterator[str]


def calls(file: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]


def named(call: ast.Call) -> tuple[str, str]:
    """What a call is made on, empty where on nothing, and the function's name."""
    func = call.func
    if isinstance(func, ast.Attribute):
        return ast.unparse(func.value), func.attr
    return "", func.id if isinstance(func, ast.Name) else ""


def told(call: ast.Call, keyword: str) -> str | None:
    return next((ast.unparse(k.value) for k in call.keywords if k.arg == keyword), None)


def loads(call: ast.Call) -> bool:
    on, name = named(call)
    ours = not on and name == "from_pretrained"  # abliterate.compute.load's own, which is looked at where it stands
    return name in LOADS and not ours and on not in NO_CODE


def silent_about_code(call: ast.Call) -> Found:
    if loads(call) and told(call, "trust_remote_code") in (None, "True", "None"):
        yield "trust_remote_code"


def may_read_pickles(call: ast.Call) -> Found:
    on, name = named(call)
    weights = name == "from_pretrained" and loads(call) and on not in NO_WEIGHTS and told(call, "gguf_file") is None
    if weights and told(call, "use_safetensors") != "True":
        yield "use_safetensors=True"
    if (on, name) == ("torch", "load") and told(call, "weights_only") != "True":
        yield "weights_only=True"
    if on in ("np", "numpy") and name == "load" and told(call, "allow_pickle") != "False":
        yield "allow_pickle=False"


def runs_anything(call: ast.Call) -> Found:
    on, name = named(call)
    if (not on and name in EXECUTE) or f"{on}.{name}" in UNSAFE or told(call, "shell") not in (None, "False"):
        yield f"without {on}.{name}"


@pytest.mark.parametrize("lacks", [silent_about_code, may_read_pickles, runs_anything])
def test_no_call_runs_what_comes_with_a_file(lacks: Callable[[ast.Call], Found]) -> None:
    found = [f"{file.relative_to(ROOT)}:{call.lineno}: {what}" for file in FILES for call in calls(file) for what in lacks(call)]
    assert found == []


def test_no_module_imports_what_reads_pickles() -> None:
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & PICKLES, file


def test_the_calls_are_found_at_all() -> None:
    assert sum(loads(call) for file in FILES for call in calls(file)) > 20
    [call] = [node for node in ast.walk(ast.parse("AutoModel.from_pretrained(path, **options)")) if isinstance(node, ast.Call)]
    assert [*silent_about_code(call), *may_read_pickles(call)] == ["trust_remote_code", "use_safetensors=True"]
