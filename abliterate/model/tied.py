"""Whether a model's token embedding and unembedding are one matrix: decided in this one place, from the stored tensors and the config.

Transformers ties them if the config says so, unless both are stored and differ (``PreTrainedModel.tie_weights``).
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from transformers import PretrainedConfig

from abliterate.errors import InputError
from abliterate.model.index import ShardIndex, Stamp, TensorInfo, first_difference, open_index, reading
from abliterate.model.layouts import Layout
from abliterate.model.meta import as_loaded, ties
from abliterate.model.tensor_names import text_name


def says_tied(path: Path, whole: PretrainedConfig, text: PretrainedConfig, trust_remote_code: bool) -> bool:
    """Whether a folder's config ties the embeddings. If the whole config and its text part disagree, the one that the model uses decides.

    Raises InputError if they disagree and transformers can't build the model.
    """
    said = {bool(getattr(config, "tie_word_embeddings", False)) for config in (whole, text)}
    return ties(as_loaded(path, whole, trust_remote_code)) if len(said) > 1 else said.pop()


def two_stored(path: Path, layout: Layout) -> bool:
    """Whether the checkpoint in a folder stores two matrices that differ; False if a matrix is missing or the checkpoint is damaged."""
    try:
        index = open_index(path)
    except InputError:  # the error is reported when the weights are read
        return False
    heads = [
        next((i for i in index.tensors.values() if text_name(i.name) == name), None) for name in (layout.embedding, layout.unembedding)
    ]
    embedding, unembedding = heads
    return embedding is not None and unembedding is not None and _differ(_Pair(index), embedding, unembedding, *index.stamps.values())


class _Pair:
    """Wraps an index so that a cached result depends on its folder alone; the shards' stamps show when it changed."""

    def __init__(self, index: ShardIndex) -> None:
        self.index = index

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Pair) and other.index.folder == self.index.folder

    def __hash__(self) -> int:
        return hash(self.index.folder)


@lru_cache(maxsize=16)
def _differ(pair: _Pair, embedding: TensorInfo, unembedding: TensorInfo, *stamps: Stamp) -> bool:
    """Compare up to the first difference, so that two different matrices of a large vocabulary are told apart quickly."""
    index = pair.index
    if (embedding.dtype, embedding.shape) != (unembedding.dtype, unembedding.shape):
        return True
    with reading(index.folder):
        return first_difference(index, embedding, index, unembedding) is not None
