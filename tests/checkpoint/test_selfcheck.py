"""The self-check: what an edit would get wrong is refused on a small copy, by name, before a real weight is touched."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, dynamic_module_utils

from abliterate.checkpoint import selfcheck
from abliterate.checkpoint.selfcheck import SelfCheck, self_check
from abliterate.compute.blockwise.trial import abilities_of
from abliterate.errors import InputError
from abliterate.model.folder import open_folder
from abliterate.model.index import open_index
from abliterate.model.tiny import tiny_config, tiny_model

LLAMA = 'attention = ["self_attn.o_proj"]\nmlp = ["mlp.down_proj"]\n'
GEMMA = """
attention = [{ weight = "self_attn.o_proj.weight", norm = "post_attention_layernorm", offset = 1 }]
mlp = [{ weight = "mlp.down_proj.weight", norm = "post_feedforward_layernorm", offset = 1 }]
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ABLITERATE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "selfchecks"


Make = Callable[..., Path]


@pytest.fixture
def saved(tmp_path: Path) -> Make:
    """``saved("llama", blocks=2)`` gives the folder of a small random model."""

    def make(model_type: str, blocks: int = 2, **options: Any) -> Path:
        config = tiny_config(AutoConfig.for_model(model_type, **options).get_text_config(), blocks)
        tiny_model(config, seed=5).save_pretrained(tmp_path / model_type)
        return tmp_path / model_type

    return make


def check(model: Path, layout: str | None = None) -> SelfCheck:
    """The self-check of a folder, with the layout of a user's file."""
    path = model.parent / "layout.toml"
    if layout is not None:
        path.write_text(layout, encoding="utf-8")
    return self_check(open_folder(model, layout=path if layout is not None else None), open_index(model))


def refusal(model: Path, layout: str | None = None) -> str:
    with pytest.raises(InputError) as caught:
        check(model, layout)
    assert "\n" not in str(caught.value) and "abliterate-selfcheck" not in str(caught.value)
    return str(caught.value)


def rewrite(model: Path, change: Callable[[dict[str, Tensor]], Any]) -> Path:
    stored = load_file(model / "model.safetensors")
    change(stored)
    save_file(stored, model / "model.safetensors", {"format": "pt"})
    return model


def test_a_good_layout_is_proven_with_its_figures(saved: Make) -> None:
    made = check(saved("llama"), LLAMA)
    assert (made.architecture, made.layout, made.blocks) == ("llama", "layout", 2)
    assert made.before > 1e-2 and made.left <= 1e-5 and made.logits <= 1e-4 and made.kl < 1e-9


def test_behind_norms_the_edit_is_exact_and_is_what_hooks_compute(saved: Make) -> None:
    made = check(saved("gemma2"), GEMMA)
    assert made.left <= 1e-5 and made.logits <= 1e-4 and made.kl < 1e-9


@pytest.mark.parametrize(
    ("model_type", "layout", "missed"),
    [
        ("llama", 'attention = ["self_attn.o_proj"]\nmlp = []', "model.layers.0.mlp.down_proj.weight"),
        ("llama", 'attention = []\nmlp = ["mlp.down_proj"]', "model.layers.0.self_attn.o_proj.weight"),
        ("qwen2_moe", 'mlp = ["mlp.experts.*.down_proj"]', "model.layers.0.mlp.shared_expert.down_proj.weight"),
        ("gpt_oss", "mlp = []", "model.layers.0.mlp.experts.down_proj"),
        ("gpt_oss", '[[mlp]]\nweight = "mlp.experts.down_proj"\naxis = 2\n', "model.layers.0.mlp.experts.down_proj_bias"),
    ],
)
def test_a_writer_left_out_is_named(saved: Make, model_type: str, layout: str, missed: str) -> None:
    message = refusal(saved(model_type), layout)
    assert "still lies along the direction after block 0" in message
    assert re.search(rf"not edited there:.*{re.escape(missed)}(,|$)", message)


@pytest.mark.parametrize(
    ("model_type", "layout", "reason"),
    [
        # d_model on the other axis: a square matrix shows in the stream, any other in its shape
        ("llama", '[[attention]]\nweight = "self_attn.o_proj.weight"\naxis = 1\n', "still lies along"),
        ("llama", '[[mlp]]\nweight = "mlp.down_proj.weight"\naxis = 1\n', "shape [64, 40]; axis 1 must be 64"),
        ("gpt_oss", '[[mlp]]\nweight = "mlp.experts.down_proj"\naxis = 1\n', "shape [4, 40, 64]; axis 1 must be 64"),
        # norms between a writer and the stream: left out, of another offset, watched in another place
        ("gemma2", LLAMA, "still lies along"),
        ("gemma2", GEMMA.replace("offset = 1", "offset = 0"), "still lies along"),
        ("gemma2", GEMMA.replace("offset = 1", 'offset = 1, module = "nowhere"'), "no module 'nowhere'"),
        # what doesn't write the stream
        ("llama", LLAMA.replace("o_proj", 'o_proj", "self_attn.q_proj'), "what is edited doesn't write it"),
        ("gemma2", GEMMA.replace("attention = [", 'attention = ["self_attn.q_proj", '), "what is edited doesn't write it"),
        # the rest of a layout
        ("llama", 'block = "model.layer.{}"', "calls a writer"),
        ("llama", 'block_module = "model.layer.{}"', "has no module"),
        ("llama", 'embedding = "model.embed"', "lacks model.embed.weight"),
        ("llama", 'positions = "model.positions"', "no module 'model.positions'"),
        ("bloom", BLOOM := (
            'block = "transformer.h.{}"\nembedding = "transformer.word_embeddings"\n'
            '[[attention]]\nweight = "self_attention.dense.weight"\nmodule = "self_attention.dense"\n'
            '[[mlp]]\nweight = "mlp.dense_4h_to_h.weight"\nmodule = "mlp.dense_4h_to_h"\n'
        ), "positions or a norm"),
    ],
)  # fmt: skip
def test_a_layout_that_is_wrong_somewhere_is_refused(saved: Make, model_type: str, layout: str, reason: str) -> None:
    options = {"tie_word_embeddings": False} if model_type == "bloom" else {}
    assert reason in refusal(saved(model_type, **options), layout)


def test_a_users_layout_opens_an_architecture_that_no_guess_fits(saved: Make) -> None:
    model = saved("axk1")
    assert "guessed from axk1" in refusal(model)
    norm = 'norm = "post_mlp_layernorm", module = "mlp"'
    made = check(
        model,
        f"""
        mlp = [
          "mlp.down_proj",
          {{ weight = "mlp.experts.*.down_proj.weight", {norm} }},
          {{ weight = "mlp.shared_experts.down_proj.weight", {norm} }},
        ]
        """,
    )
    assert made.left <= 1e-5 and made.logits <= 1e-4


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where models' own code is imported from, one place for all: Python remembers it."""
    return tmp_path_factory.mktemp("modules")


@pytest.fixture
def strange(saved: Make, tmp_path: Path, modules: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """``strange(body, name)``: a Llama whose class comes with the folder and ends with ``body``; transformers remembers each name."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(modules))
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "l.toml").write_text(LLAMA, encoding="utf-8")

    def make(body: str = "", name: str = "strange") -> Path:
        model = saved("llama")
        (model / f"configuration_{name}.py").write_text(
            f'from transformers import LlamaConfig\nclass {name}Config(LlamaConfig):\n    model_type = "{name}"\n', encoding="utf-8"
        )
        (model / f"modeling_{name}.py").write_text(
            f"from torch import nn\nfrom transformers import LlamaForCausalLM\nfrom .configuration_{name} import {name}Config\n"
            f"class {name}ForCausalLM(LlamaForCausalLM):\n    config_class = {name}Config\n    calls = 0\n{body}",
            encoding="utf-8",
        )
        code = {"AutoConfig": f"configuration_{name}.{name}Config", "AutoModelForCausalLM": f"modeling_{name}.{name}ForCausalLM"}
        config = json.loads((model / "config.json").read_text(encoding="utf-8")) | {"model_type": name, "auto_map": code}
        (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return model

    return make


def test_code_that_comes_with_a_model_is_run_only_where_that_is_allowed(strange: Callable[..., Path], tmp_path: Path) -> None:
    model = strange()
    with pytest.raises(InputError, match="custom code"):
        open_folder(model, layout=tmp_path / "l.toml")
    made = self_check(open_folder(model, True, tmp_path / "l.toml"), open_index(model))
    assert made.architecture == "strange" and made.logits <= 1e-4


SECOND = """
    def forward(self, *args, **kwargs):
        type(self).calls += 1
        if type(self).calls > 1:
            raise RuntimeError("expected Half\\nbut found Float")
        return super().forward(*args, **kwargs)
"""
BARE = """
    def __init__(self, config):
        super().__init__(config)
        for block in self.model.layers:
            block.post_attention_layernorm, block.post_feedforward_layernorm = nn.Identity(), nn.Identity()
"""


def test_a_copy_that_breaks_off_in_any_way_is_one_line(strange: Callable[..., Path], tmp_path: Path) -> None:
    model = strange(SECOND, "second_call")
    folder = open_folder(model, True, tmp_path / "l.toml")
    with pytest.raises(InputError, match=r"'second_call' can't be tried on a small copy \(expected Half\)$"):
        self_check(folder, open_index(model))
    with pytest.raises(
        InputError,
        match=r"'second_call' can't be run block by block: its small copy fails \(expected Half\)|'second_call'.*\(expected Half\)",
    ):
        abilities_of(folder)


def test_a_guess_that_breaks_off_in_any_way_is_one_line(strange: Callable[..., Path]) -> None:
    with pytest.raises(
        InputError, match=r"no layout for the architecture 'bare' \('bare' can't be tried on a small copy \(StopIteration\)\)"
    ) as caught:
        open_folder(strange(BARE, "bare"), True)
    assert "\n" not in str(caught.value)


def test_the_second_time_the_figures_come_from_the_cache_wherever_the_model_lies(
    saved: Make, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = saved("llama")
    first = check(model, LLAMA)
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(selfcheck, "tiny_model", lambda *args: pytest.fail("built again"))
    assert check(model, LLAMA) == first
    (tmp_path / "elsewhere").mkdir()
    assert check(model.rename(tmp_path / "elsewhere" / "llama"), LLAMA) == first


@pytest.mark.parametrize("what", ["layout", "config", "names", "damage"])
def test_the_cache_is_not_used_for_anything_else(saved: Make, cache: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    model, layout = saved("llama"), LLAMA
    check(model, layout)
    if what == "layout":
        layout = 'attention = ["self_attn.o_proj"]\nmlp = []'
    if what == "config":
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
        (model / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}), encoding="utf-8")
    if what == "names":
        rewrite(model, lambda stored: stored.update({"model.layers.0.mystery": torch.ones(64)}))
    if what == "damage":
        next(cache.iterdir()).write_text("{", encoding="utf-8")
    built = []
    monkeypatch.setattr(selfcheck, "tiny_model", lambda *args: built.append(1) or tiny_model(*args))
    if what in ("layout", "names"):
        refusal(model, layout)
    else:
        check(model, layout)
    assert built == [1]


def test_a_refusal_is_never_kept(saved: Make, cache: Path) -> None:
    for _ in range(2):
        assert "still lies along" in refusal(saved("gemma2"), LLAMA)
        assert not cache.exists()


@pytest.mark.parametrize(
    ("model_type", "change", "named"),
    [
        ("qwen3_moe", lambda s: s.pop("model.layers.1.mlp.experts.2.down_proj.weight"), "layers.1.mlp.experts.2.down_proj.weight"),
        ("qwen3_moe", lambda s: s.pop("model.layers.0.mlp.experts.3.up_proj.weight"), "layers.0.mlp.experts.3.up_proj.weight"),
        ("llama", lambda s: s.pop("model.layers.1.mlp.down_proj.weight"), "block 1 differs.*mlp.down_proj.weight"),
        ("llama", lambda s: s.update({"model.layers.1.mystery.weight": torch.ones(64, 64)}), "first: model.layers.1.mystery.weight"),
        ("llama", lambda s: s.update({"adapter.weight": torch.ones(2)}), "first: adapter.weight"),
    ],
)
def test_a_checkpoint_that_lacks_or_has_what_its_architecture_has_not_is_refused(
    saved: Make, model_type: str, change: Callable[[dict[str, Tensor]], Any], named: str
) -> None:
    assert re.search(named, refusal(rewrite(saved(model_type), change)))


def test_a_copy_that_transformers_cannot_make_is_one_line(saved: Make) -> None:
    model = saved("llama")
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (model / "config.json").write_text(json.dumps({**config, "hidden_act": "no such function"}), encoding="utf-8")
    assert "can't be tried on a small copy" in refusal(model)


def test_a_block_that_reading_text_skips_cannot_be_proven(saved: Make) -> None:
    assert "block 3 does nothing when the model reads text" in refusal(saved("mllama", blocks=4))


@pytest.mark.parametrize(
    ("model_type", "options", "blocks", "enough"),
    [
        ("llama", {}, 6, 2),
        ("llama", {}, 1, 1),
        ("jamba", {}, 8, 5),
        ("olmo3", {}, 8, 4),
        ("deepseek_v3", {}, 6, 4),
    ],
)
def test_the_copy_has_a_block_of_each_kind_and_no_more(
    saved: Make, model_type: str, options: dict[str, Any], blocks: int, enough: int
) -> None:
    assert check(saved(model_type, blocks, **options)).blocks == enough
