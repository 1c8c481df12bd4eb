"""Which tensors of an architecture write into the residual stream: a table, keyed by the config's ``model_type``.

Names are templates over the block number. The editor works on the tensors' names on disk, hooks on the modules' names
in memory; for the layouts here a module's name is its tensor's without ``.weight``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from abliterate.errors import InputError

Component = Literal["attention", "mlp"]
COMPONENTS: tuple[Component, ...] = ("attention", "mlp")


@dataclass(frozen=True)
class Writer:
    """A weight whose product enters the residual stream.

    ``axis`` is the stored tensor's axis of size d_model; a bias, where the checkpoint has one, is written along with it.
    """

    weight: str
    component: Component
    axis: int = 0

    @property
    def bias(self) -> str:
        return self.weight.removesuffix(".weight") + ".bias"

    def module(self, layer: int) -> str:
        return self.weight.removesuffix(".weight").format(layer=layer)


@dataclass(frozen=True)
class Layout:
    """The residual-stream anatomy of a family. ``others`` are the templates of all tensors that write nothing to it."""

    name: str
    writers: tuple[Writer, ...]
    others: tuple[str, ...]
    block: str = "model.layers.{layer}"
    embedding: str = "model.embed_tokens.weight"
    unembedding: str = "lm_head.weight"

    @property
    def embedding_module(self) -> str:
        return self.embedding.removesuffix(".weight")

    def unknown(self, names: Iterable[str]) -> list[str]:
        """Names of tensors that this layout can't place: a writer may hide among them."""
        biases = tuple(w.bias for w in self.writers)
        known = {*(w.weight for w in self.writers), *biases, *self.others, self.embedding, self.unembedding}
        return sorted(name for name in names if re.sub(r"\.\d+\.", ".{layer}.", name, count=1) not in known)


_BLOCK = "model.layers.{layer}."
_LLAMA = Layout(
    name="llama",
    writers=(
        Writer(_BLOCK + "self_attn.o_proj.weight", "attention"),
        Writer(_BLOCK + "mlp.down_proj.weight", "mlp"),
    ),
    others=(
        *(f"{_BLOCK}self_attn.{m}_proj.{kind}" for m in "qkv" for kind in ("weight", "bias")),
        *(f"{_BLOCK}self_attn.{m}_norm.weight" for m in "qk"),
        *(f"{_BLOCK}mlp.{m}_proj.{kind}" for m in ("gate", "up") for kind in ("weight", "bias")),
        _BLOCK + "input_layernorm.weight",
        _BLOCK + "post_attention_layernorm.weight",
        _BLOCK + "self_attn.rotary_emb.inv_freq",
        "model.norm.weight",
    ),
)

# Pre-norm decoders whose blocks write through o_proj and down_proj alone.
LAYOUTS: dict[str, Layout] = {"llama": _LLAMA, "mistral": _LLAMA, "qwen2": _LLAMA, "qwen3": _LLAMA}


def layout_for(model_type: str) -> Layout:
    """The layout of an architecture. Raises InputError where the table has none."""
    try:
        return LAYOUTS[model_type]
    except KeyError:
        raise InputError(
            f"no layout for the architecture {model_type!r}: it would be edited inexactly; known: {', '.join(sorted(LAYOUTS))}"
        ) from None
