"""Read what a model folder's config says about the model, without loading it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig, PretrainedConfig

from abliterate.errors import InputError, first_line
from abliterate.files import Json
from abliterate.model.files import check_genuine, in_truth
from abliterate.model.formats.format import StoredFormat
from abliterate.model.formats.plain import PLAIN
from abliterate.model.formats.table import format_of_config
from abliterate.model.guess import guess_layout
from abliterate.model.layouts import Layout, aliased, known_types, layout_for, load_layout, refusal_of
from abliterate.model.source import check_folder
from abliterate.model.tied import says_tied, two_stored


@dataclass(frozen=True)
class ModelFolder:
    """A model's folder and the values from its (text) config that an edit needs.

    ``tied``: the token embedding and the unembedding are one matrix; ``says_tied``: the config says so, even if two different matrices
    are stored. ``stored``: the format of its weights that the config states.
    """

    path: Path
    model_type: str
    layout: Layout
    layers: int
    d_model: int
    tied: bool
    config: PretrainedConfig
    stored: StoredFormat = PLAIN
    trust_remote_code: bool = False
    says_tied: bool = False

    @property
    def quantisation(self) -> str | None:
        """The name of the format of quantised weights; None if they are stored as they are."""
        return None if self.stored is PLAIN else self.stored.key


def open_folder(path: Path, trust_remote_code: bool = False, layout: Path | None = None) -> ModelFolder:
    """Read ``config.json``; the layout comes from the user's file, the table, or a guess that the self-check must prove.

    Of the weights, only token embedding and unembedding are read, and only if the config ties them and both are stored.

    Raises InputError: no folder, no or broken config, an architecture without a layout, weights in a format that can't be edited.
    """
    file = path / "config.json"
    raw = _raw_config(path, file)
    stored = _stored(path, raw)
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
        stored=stored,
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


def _stored(path: Path, raw: Json) -> StoredFormat:
    """The stored format of the weights. Raises InputError if it can't be edited."""
    text = raw.get("text_config")
    settings = raw.get("quantization_config") or (text.get("quantization_config") if isinstance(text, dict) else None)
    try:
        return format_of_config(settings)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _guessed(text: PretrainedConfig, model_type: str, trust_remote_code: bool) -> Layout:
    try:
        return guess_layout(text, trust_remote_code)
    except Exception as error:  # each architecture breaks in its own way when it is tried
        why = str(error) if isinstance(error, InputError) else f"its small copy fails, {type(error).__name__}: {first_line(error)}"
        raise InputError(
            f"no layout for the architecture {model_type!r} ({why}), so an edit might be inexact; give --layout FILE.toml, "
            f"or a model of a known architecture ({', '.join(known_types())})"
        ) from None
