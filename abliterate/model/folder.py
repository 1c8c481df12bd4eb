"""Read what a model folder's config says about the model, without loading it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transformers import AutoConfig, PretrainedConfig

from abliterate.errors import InputError, first_line
from abliterate.files import Json
from abliterate.model.files import check_genuine, in_truth
from abliterate.model.guess import guess_layout
from abliterate.model.layouts import Layout, aliased, known_types, layout_for, load_layout, refusal_of
from abliterate.model.source import check_folder
from abliterate.model.tied import says_tied, two_stored

Quantisation = Literal["fp8", "mxfp4"]
# Names of the quantisation methods whose weights can't be edited exactly.
_REFUSED = {
    "gptq": "GPTQ", "awq": "AWQ", "bitsandbytes": "bitsandbytes", "compressed-tensors": "compressed-tensors", "aqlm": "AQLM",
    "hqq": "HQQ", "quanto": "Quanto", "torchao": "torchao", "eetq": "EETQ", "modelopt": "ModelOpt", "auto-round": "AutoRound",
    "bitnet": "BitNet", "fbgemm_fp8": "FBGEMM FP8", "vptq": "VPTQ", "spqr": "SpQR", "higgs": "HIGGS", "fp_quant": "FP-Quant",
}  # fmt: skip


@dataclass(frozen=True)
class ModelFolder:
    """A model's folder and the values from its (text) config that an edit needs.

    ``tied``: the token embedding and the unembedding are one matrix; ``says_tied``: the config says so, even if two different matrices
    are stored.
    """

    path: Path
    model_type: str
    layout: Layout
    layers: int
    d_model: int
    tied: bool
    config: PretrainedConfig
    quantisation: Quantisation | None = None
    fp8_block: tuple[int, int] = (128, 128)
    fp8_powers: bool = False
    trust_remote_code: bool = False
    says_tied: bool = False


def open_folder(path: Path, trust_remote_code: bool = False, layout: Path | None = None) -> ModelFolder:
    """Read ``config.json``; the layout comes from the user's file, the table, or a guess that the self-check must prove.

    Of the weights, only token embedding and unembedding are read, and only if the config ties them and both are stored.

    Raises InputError: no folder, no or broken config, an architecture without a layout, weights in a format that can't be edited.
    """
    file = path / "config.json"
    raw = _raw_config(path, file)
    quantisation, block, powers = _quantisation(path, raw)
    config = _config(file, raw, trust_remote_code)
    try:
        text = config.get_text_config()
    except ValueError as error:  # several decoders, and the config doesn't say which one is for text
        raise InputError(f"{file}: it has no single text model ({first_line(error)})") from None
    layers, d_model = int(getattr(text, "num_hidden_layers", 0)), int(getattr(text, "hidden_size", 0))
    if min(layers, d_model) < 1:
        raise InputError(f"{file}: num_hidden_layers and hidden_size must be at least 1")
    model_type = str(text.model_type)
    if (reason := refusal_of(model_type)) is not None:
        raise InputError(f"{path}: {model_type!r} can't be edited exactly: {reason}")
    known = load_layout(layout) if layout else layout_for(model_type) or layout_for(str(raw["model_type"]))
    found = known or _guessed(text, model_type, trust_remote_code)
    said = says_tied(path, config, text, trust_remote_code)
    text.tie_word_embeddings = tied = said and not two_stored(path, found)  # models built from this config are tied as the model is
    return ModelFolder(
        path=path,
        model_type=str(raw["model_type"]),
        layout=found,
        layers=layers,
        d_model=d_model,
        tied=tied,
        config=text,
        quantisation=quantisation,
        fp8_block=block,
        fp8_powers=powers,
        trust_remote_code=trust_remote_code,
        says_tied=said,
    )


def whole_config(folder: ModelFolder) -> PretrainedConfig:
    """The config of everything in the folder: for a vision-language model, not of its text part alone."""
    file = folder.path / "config.json"
    return _config(file, _raw_config(folder.path, file), folder.trust_remote_code)


def _raw_config(path: Path, file: Path) -> Json:
    check_folder(path)
    try:
        raw: Json = json.loads(file.read_text(encoding="utf-8"))
        str(raw["model_type"])
    except (ValueError, KeyError, TypeError, RecursionError):
        instead = in_truth(file)
        raise InputError(f"{file}: not a model config (JSON with 'model_type')" + (f" but {instead}" if instead else "")) from None
    check_genuine(path)
    return raw


def _config(file: Path, raw: Json, trust_remote_code: bool) -> PretrainedConfig:
    try:
        if aliased(raw["model_type"]) != raw["model_type"]:
            renamed: PretrainedConfig = AutoConfig.for_model(**{**raw, "model_type": aliased(raw["model_type"])})
            return renamed
        found: PretrainedConfig = AutoConfig.from_pretrained(file.parent, trust_remote_code=trust_remote_code, local_files_only=True)
        return found
    except Exception as error:  # transformers raises many kinds for a config it can't use
        raise InputError(f"{file}: transformers can't use it ({first_line(error)})") from None


def _quantisation(path: Path, raw: Json) -> tuple[Quantisation | None, tuple[int, int], bool]:
    """The format of the quantised weights if it can be edited, FP8's block size, and whether its scales are powers of two.

    Raises InputError for every other format.
    """
    text = raw.get("text_config")
    settings = raw.get("quantization_config") or (text.get("quantization_config") if isinstance(text, dict) else None)
    if not settings:
        return None, (128, 128), False
    method = str(settings.get("quant_method", "unknown")) if isinstance(settings, dict) else "unknown"
    if method == "mxfp4":
        return "mxfp4", (128, 128), False
    if method == "fp8":
        block = settings.get("weight_block_size")
        if isinstance(block, list) and len(block) == 2 and all(isinstance(n, int) and n > 0 for n in block):
            return "fp8", (block[0], block[1]), settings.get("scale_fmt") == "ue8m0"
        raise InputError(f"{path}: FP8 weights without block scales (weight_block_size) can't be edited exactly; give a bf16 checkpoint")
    name = _REFUSED.get(method, method)
    raise InputError(
        f"{path}: the weights are quantised ({name}), which can't be edited exactly; give the unquantised checkpoint (bf16, fp16, fp32, "
        "block-scaled FP8 or MXFP4), and quantise the result again"
    )


def _guessed(text: PretrainedConfig, model_type: str, trust_remote_code: bool) -> Layout:
    try:
        return guess_layout(text, trust_remote_code)
    except Exception as error:  # each architecture breaks in its own way when it is tried
        why = str(error) if isinstance(error, InputError) else f"its small copy fails, {type(error).__name__}: {first_line(error)}"
        raise InputError(
            f"no layout for the architecture {model_type!r} ({why}), so an edit might be inexact; give --layout FILE.toml, "
            f"or a model of a known architecture ({', '.join(known_types())})"
        ) from None
