"""``import abliterate``: a small surface that is all there, quick to import, and does what its documentation shows."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import abliterate
from abliterate.model.chat.template import encode

Tiny = Callable[..., Path]
ROOT = Path(__file__).parents[1]
WORDS = ["stone", "river", "cloud", "paper", "candle", "window", "garden", "bridge", "mirror", "harbour", "lantern", "meadow"]


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    """A folder with a file for each role."""
    for role, pattern in {"target": "Burn the {}!", "baseline": "Draw the {}.", "harmless": "Name a {}"}.items():
        (tmp_path / f"{role}.txt").write_text("\n".join(pattern.format(word) for word in WORDS), encoding="utf-8")
    return tmp_path


def test_every_name_is_there_with_a_docstring() -> None:
    for name in abliterate.__all__:
        found = getattr(abliterate, name)
        assert not callable(found) or found.__doc__, name
    assert set(abliterate.__all__) <= set(dir(abliterate))
    with pytest.raises(AttributeError, match="no attribute 'abliterated'"):
        abliterate.abliterated  # noqa: B018


def test_what_type_checkers_see_is_what_is_looked_up() -> None:
    tree = ast.parse((ROOT / "abliterate" / "__init__.py").read_text(encoding="utf-8"))
    seen = next(node for node in tree.body if isinstance(node, ast.If))
    imported = {
        (str(node.module).removeprefix("abliterate."), alias.name)
        for node in seen.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported == {(home, name) for home, names in abliterate._HOMES.items() for name in names}
    assert {name for _, name in imported} | {"__version__"} == set(abliterate.__all__)


def test_every_name_stands_in_the_documentation() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert [name for name in abliterate.__all__ if f"`{name}`" not in text and name != "__version__"] == []


def test_importing_it_loads_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, abliterate; abliterate.RunConfig; abliterate.__version__; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.stdout.strip() == "[]"


def test_the_examples_of_the_documentation_run(tiny: Tiny, sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    examples = re.findall(r"(?s)```python\n(.*?)```", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"))
    assert len(examples) >= 7
    names: dict[str, object] = {"MODEL": str(tiny()), "SETS": str(sets)}
    for example in examples:
        exec(compile(example, "docs/api.md", "exec"), names)
    assert "withheld, 95 % interval" in capsys.readouterr().out


def test_the_example_script_runs(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    script = ROOT / "scripts" / "examples" / "find_a_direction.py"
    for name, value in {"MODEL": str(tiny()), "OUT": str(tmp_path / "edited"), "LIMIT": "6"}.items():
        monkeypatch.setenv(name, value)
    exec(compile(script.read_text(encoding="utf-8"), str(script), "exec"), {"__name__": "__main__"})
    shown = capsys.readouterr().out
    assert shown.count("block ") >= 5 and "verified: " in shown and " of 6, 95 % interval" in shown
    AutoModelForCausalLM.from_pretrained(tmp_path / "edited")


def test_an_edit_that_is_hooked_in_says_what_the_edited_checkpoint_says(
    tiny: Tiny, tmp_path: Path, unit_direction: Callable[[int], torch.Tensor]
) -> None:
    folder = tiny()
    model = abliterate.load_model(folder)
    edit = abliterate.edit_from_direction(unit_direction(32), model.folder.layers)
    asked = [f"Draw the {word}." for word in WORDS[:4]]
    untouched, hooked = (abliterate.generate(model, asked, 8, one) for one in (None, edit))
    abliterate.edit_checkpoint(folder, edit, tmp_path / "edited")
    written = abliterate.generate(abliterate.load_model(str(tmp_path / "edited")), asked, 8)
    assert hooked == written != untouched == abliterate.generate(model, asked, 8)


def test_replies_are_in_the_order_of_the_prompts(tiny: Tiny) -> None:
    model = abliterate.load_model(tiny())
    asked = ["a" * 40, "b", "c" * 20]
    replies = abliterate.generate(model, asked, 4)
    assert [t.prompt for t in replies] == asked
    assert [t.response for t in replies] == [abliterate.generate(model, [one], 4)[0].response for one in asked]
    assert abliterate.generate(model, []) == [] and encode(model.tokenizer, []) == []


def test_a_models_settings_may_be_told(tiny: Tiny) -> None:
    folder = tiny()
    model = abliterate.load_model(folder, abliterate.ModelConfig(model="another", dtype="bfloat16", batch_size=2))
    assert model.module.dtype == torch.bfloat16 and model.folder.path == folder  # type: ignore[attr-defined]
    with pytest.raises(abliterate.InputError, match="nowhere"):
        abliterate.load_model("nowhere")
