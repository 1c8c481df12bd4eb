"""Whatever transformers raises while a model is built, loaded or tried on a small copy: one line with the reason, and no traceback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from blockwise import open_alike, open_blockwise
from conftest import save_tiny
from held import replies
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from abliterate.cli.main import main
from abliterate.compute.passes import Pass
from abliterate.compute.whole.model import load_model
from abliterate.errors import CheckError, InputError
from abliterate.model.failure import refused
from abliterate.terminal.progress import say_once

Tiny = Callable[..., Path]
HELD: dict[str, Callable[[Path], Any]] = {"whole": lambda folder: load_model(folder, "float32", "cpu"), "block by block": open_alike}


class BreakingConfig(LlamaConfig):
    model_type = "breaking"


class BreakingModel(LlamaForCausalLM):
    """Computes once, and breaks when it is asked again."""

    config_class = BreakingConfig  # type: ignore[assignment]
    spared = 1

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if BreakingModel.spared == 0:
            raise RuntimeError("the tensors don't match\nat some place")
        BreakingModel.spared -= 1
        return super().forward(*args, **kwargs)


AutoConfig.register("breaking", BreakingConfig)
AutoModelForCausalLM.register(BreakingConfig, BreakingModel)


def breaking(place: Path) -> Path:
    return reconfigured(save_tiny(place / "model", layers=2), model_type="breaking", architectures=["BreakingModel"])


def reconfigured(folder: Path, **settings: Any) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    return folder


@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"rope_parameters": {"rope_type": "su", "rope_theta": 1e4, "factor": 4.0}}, "rope_parameters.rope_type is 'su'"),
        ({"hidden_act": "swoosh"}, "hidden_act is 'swoosh'"),
        ({"num_attention_heads": 5}, "head"),
    ],
)
def test_a_setting_that_transformers_does_not_know_is_named(tiny: Tiny, held: str, settings: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError) as caught:
        HELD[held](reconfigured(tiny(layers=2), **settings))
    assert named in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_an_implementation_that_is_not_there_gives_way_to_another(
    tiny: Tiny, held: str, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, asking = tiny(layers=2), tiny(layers=2)
    reconfigured(asking, **{key: "flash_attention_2"})
    say_once.cache_clear()
    made = [replies(HELD[held](folder), Pass([[5, 6, 7], [8, 9]]), 4) for folder in (plain, asking, asking)]
    assert made[0] == made[1] == made[2]
    assert capsys.readouterr().err.count(f"{asking.name}: its config asks for {key.strip('_')} 'flash_attention_2'") == 1


@pytest.mark.parametrize(
    "error", [KeyError("su"), KeyError(), KeyError(3), ImportError("no such package\nmore"), AttributeError("x"), ZeroDivisionError()]
)
def test_every_kind_of_error_is_one_line(error: Exception) -> None:
    with pytest.raises(InputError, match=r"^m can't be loaded \(.+\)$") as caught, refused("m can't be loaded"):
        raise error
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [InputError("what is wrong"), CheckError("what didn't hold"), KeyboardInterrupt()])
def test_what_says_enough_itself_goes_through(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, refused("m can't be loaded"):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("spared", [0, 1, 2])
@pytest.mark.parametrize("command", ["edit", "plan"])
def test_an_architecture_whose_small_copy_breaks_is_refused_by_name(
    tmp_path: Path, spared: int, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = breaking(tmp_path)
    save_file({"direction": torch.ones(32)}, tmp_path / "direction.safetensors")
    more = {
        "edit": ["--direction", str(tmp_path / "direction.safetensors"), "--out", str(tmp_path / "out")],
        "plan": [],
    }
    BreakingModel.spared = spared
    code = main([command, "--model", str(folder), *more[command]])
    said = capsys.readouterr().err
    assert "Traceback" not in said
    if code:
        assert code == 2 and "'breaking'" in said.splitlines()[-1] and "the tensors don't match" in said.splitlines()[-1]
        assert not (tmp_path / "out").exists()
    assert code == 2 or (spared > 0 and command == "plan")  # which only reads the layout off the copy


@pytest.mark.parametrize("spared", [0, 1, 2, 3, 4])
def test_it_is_refused_too_where_it_would_be_run_block_by_block(tmp_path: Path, spared: int) -> None:
    BreakingModel.spared = spared
    with pytest.raises(InputError, match=r"'breaking'.*the tensors don't match") as caught:
        open_blockwise(breaking(tmp_path))
    assert "\n" not in str(caught.value)
