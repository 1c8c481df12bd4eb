"""Logits with gradients, for the tuner; the model's weights stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig

from abliterate.compute.forward import packed, pad_id
from abliterate.compute.hooks import changed, computing
from abliterate.compute.memory import free
from abliterate.compute.passes import Ids, Intervention
from abliterate.compute.prefix import after, computed, only_attends, prefix_length
from abliterate.compute.whole.model import WholeModel

TOKENS = 768  # in a micro-batch at most: more is no faster
SHARE = 0.5  # of the free memory, for what autograd graphs keep


@dataclass(frozen=True)
class MicroBatch:
    """How many ``tokens`` go through the model together, and whether the blocks' activations are recomputed in the backward pass."""

    tokens: int
    recompute: bool = False


def micro_batch(model: WholeModel, longest: int) -> MicroBatch:
    """As many tokens as memory allows for the graph, but at least the ``longest`` sequence; if not even that fits, the blocks' activations
    are recomputed instead of kept."""
    room = free(model.device) if model.memory is None else model.memory
    each = kept_bytes(model.folder.config, model.module.dtype.itemsize)
    fitting = int(SHARE * room / each)
    return MicroBatch(min(TOKENS, max(fitting, longest)), recompute=fitting < longest)


def kept_bytes(config: PretrainedConfig, itemsize: int) -> int:
    """Bytes that a graph keeps per token: per block, about six times its widest side plus sixteen times d_model (measured)."""
    text = config.get_text_config(decoder=True)
    widest = max(int(getattr(text, "intermediate_size", 0) or 4 * text.hidden_size), int(text.hidden_size))
    return int(text.num_hidden_layers) * int(6.4 * widest + 16 * int(text.hidden_size)) * itemsize


def logits(
    model: WholeModel, intervention: Intervention, sequences: Ids, kept: int, micro: MicroBatch
) -> Iterator[tuple[Sequence[int], Float[Tensor, "row kept vocab"]]]:
    """Yield indices of sequences and their logits (float32) at the last ``kept`` positions, micro-batch by micro-batch.

    Gradients flow to the intervention's edit. Each micro-batch has its own graph: take its gradients before asking for the next one,
    while the intervention is still in place.
    """
    usable = model.reuse.shares and only_attends(model.folder.config, max(map(len, sequences), default=0))
    shared = prefix_length(sequences, kept) if usable else 0
    pad = pad_id(model.tokenizer, model.folder.config)
    for batch in packed(sequences, pad, micro.tokens, 1 << 30, model.device, shared, model.reuse.pads):
        with changed(model, intervention), recomputing(model) if micro.recompute else nullcontext():
            prefix = computed(model.module, sequences[0][:shared]) if shared else None
            yield batch.indices, model.module(**batch.inputs(), **after(prefix), logits_to_keep=kept).logits.float()


@contextmanager
def recomputing(model: WholeModel) -> Iterator[None]:
    """Recompute each block's activations in the backward pass instead of keeping them (gradient checkpointing)."""
    with ExitStack() as stack:
        for layer in range(model.folder.layers):
            block = model.block(layer)
            stack.enter_context(computing(block, _recomputed(block.forward)))
        yield


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: checkpoint(forward, *args, use_reentrant=False, **kwargs)
