"""Which files belong to a model, and that a file is what its name says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub.utils import filter_repo_objects

from abliterate.cli.main import main
from abliterate.errors import InputError
from abliterate.model.agreement import open_checkpoint
from abliterate.model.files import fetched, files_of
from abliterate.model.index import INDEX, SINGLE

Tiny = Callable[..., Path]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n"
PAGE = b"<!DOCTYPE html>\n<html><body>Too many requests</body></html>\n"
BELONG = [
    "config.json", "configuration.json", "generation_config.json", "preprocessor_config.json", "video_preprocessor_config.json",
    "processor_config.json", "hf_quant_config.json", "tokenizer.json", "tokenizer.model", "tokenizer.model.v3", "tekken.json", "vocab.json",
    "vocab.txt", "merges.txt", "qwen.tiktoken", "spiece.model", "source.spm", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "chat_template.json", "chat_template.jinja", "additional_chat_templates/tool_use.jinja", "encoding/encode.py",
    "custom_generate/generate.py", "LICENSE", "LICENSE.txt", "License.md", "MODEL_LICENSE", "NOTICE", "Notice.txt", "COPYING",
    "USE_POLICY.md", "THIRD_PARTY_NOTICES", "licenses/apache.txt",
]  # fmt: skip
LEFT = [
    "optimizer.pt", "scheduler.pt", "rng_state_0.pth", "training_args.bin", "trainer_state.json", "all_results.json", "train_results.json",
    "adapter_model.safetensors", "latest", "zero_to_fp32.py", "train.py", "events.out.tfevents.1", "log.txt", "requirements.txt",
    "backup.zip", "weights.tar.gz", "ds_config.json", "mergekit_config.yml", "model.onnx", "model.gguf", "consolidated.safetensors",
    "params.json", "assets/logo.png", "global_step500/__0_0.distcp", "runs/Nov29/events.out.tfevents.2", "checkpoint-500/config.json",
    "checkpoint-500/tokenizer.json", "wandb/run/config.yaml", "original/tokenizer.model", "onnx/config.json", ".git/config", "README_zh.md",
]  # fmt: skip


def written(folder: Path, *names: str, text: str = "{}") -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_what_belongs_to_a_model_is_listed_and_nothing_else(tmp_path: Path) -> None:
    own = ["README.md", "abliteration.json", "SHA256SUMS", INDEX, SINGLE]
    assert {str(name) for name in files_of(written(tmp_path, *BELONG, *LEFT, *own))} == set(BELONG)


def test_all_that_belongs_to_a_model_is_fetched_from_the_hub(tmp_path: Path) -> None:
    wanted, never = fetched(weights=True)
    asked = [*BELONG, "README.md", "modeling_own.py", "model-00001-of-00002.safetensors", INDEX]
    assert set(filter_repo_objects([*asked, *LEFT], allow_patterns=wanted, ignore_patterns=never)) >= set(asked)
    without, never = fetched(weights=False)
    assert set(filter_repo_objects(asked, allow_patterns=without, ignore_patterns=never)) == {*asked} - {"model-00001-of-00002.safetensors"}


def test_code_belongs_to_it_where_a_config_names_it_with_what_it_imports(tmp_path: Path) -> None:
    written(tmp_path, "modeling_own.py", text="import torch\nfrom .blocks import Block\nfrom . import norms\n")
    written(tmp_path, "blocks.py", text="    from .kernels.fast import x\n")
    written(tmp_path, "norms.py", "tokenization_own.py", "train.py", "zero_to_fp32.py", text="x = 1\n")
    assert files_of(tmp_path) == []
    (tmp_path / "config.json").write_text(json.dumps({"auto_map": {"AutoModelForCausalLM": "modeling_own.Own", "AutoConfig": "a--b.C"}}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["tokenization_own.Own", None]}}))
    code = {str(name) for name in files_of(tmp_path) if name.suffix == ".py"}
    assert code == {"modeling_own.py", "blocks.py", "norms.py", "tokenization_own.py"}


@pytest.mark.parametrize(
    ("content", "says"),
    [(POINTER, "a git-lfs pointer, not the file itself; run `git lfs pull`"), (PAGE, "a web page"), (b"", "empty")],
    ids=["pointer", "page", "empty"],
)
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", SINGLE, INDEX])
def test_what_is_not_the_file_itself_is_called_by_its_name(tiny: Tiny, name: str, content: bytes, says: str) -> None:
    folder = tiny(shards="20KB" if name == INDEX else None)
    (folder / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        open_checkpoint(folder)
    assert str(error.value).startswith(f"{folder / name}: ") and says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer.model", "merges.txt"])
def test_a_pointer_that_would_pass_for_text_is_told(tiny: Tiny, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny()
    (folder / name).write_bytes(POINTER)
    assert main(["plan", "--model", str(folder)]) == 2
    assert f"{folder / name}: a git-lfs pointer" in capsys.readouterr().err


def test_a_pointer_among_what_is_no_part_of_the_model_is_let_be(tiny: Tiny) -> None:
    folder = tiny()
    (folder / "consolidated.safetensors").write_bytes(POINTER)
    (folder / "assets.png").write_bytes(POINTER)
    open_checkpoint(folder)


def test_an_adapter_beside_whole_weights_is_refused_and_one_alone_told(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = written(tiny(), "adapter_config.json", "adapter_model.safetensors")
    assert main(["plan", "--model", str(folder)]) == 2
    assert "holds adapter_config.json beside full weights, and transformers would apply that adapter" in capsys.readouterr().err
    alone = written(tmp_path / "alone", "adapter_config.json", "adapter_model.safetensors")
    for _ in range(2):
        assert main(["audit", "--model", str(alone), "--prompts", "harmless", "--out", str(tmp_path / "out")]) == 2
        assert "holds an adapter (adapter_config.json), not a model; merge it into its base model" in capsys.readouterr().err
        written(alone, "config.json")  # as trainers leave it there
