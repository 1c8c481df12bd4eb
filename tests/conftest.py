"""Tiny random models saved as transformers saves them, with a byte-level chat tokenizer."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import install_import_hook

# Shapes in annotations are checked in tests, and free in normal runs.
install_import_hook("abliterate", "beartype.beartype")

from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast  # noqa: E402
from transformers.utils.logging import disable_progress_bar  # noqa: E402

# A shell ignores interrupts for what it runs in the background, and children inherit that; some tests interrupt theirs.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

disable_progress_bar()  # type: ignore[no-untyped-call]  # it would be in what the next test reads of stderr, if that test is the first to save a model


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes minutes comes first, so that no process is left alone with it in the end (with ``--no-loadscope-reorder``)."""
    items.sort(key=lambda item: item.get_closest_marker("real") is None)


def byte_tokenizer(chat_template: str | None = CHATML, bos: str | None = None) -> PreTrainedTokenizerFast:
    """One token a byte, beside the special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*SPECIALS, *([bos] if bos else []), *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token=None))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", bos_token=bos, additional_special_tokens=SPECIALS
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def save_tiny(
    folder: Path,
    family: str = "llama",
    *,
    tied: bool = False,
    layers: int = 4,
    d_model: int = 32,
    dtype: torch.dtype = torch.float32,
    shards: str | None = None,
    seed: int = 0,
    tokenizer: PreTrainedTokenizerFast | None = None,
    positions: int = 512,
    says: str | None = None,
    **config: Any,
) -> Path:
    """A random model of a few thousand weights in ``folder``: ``family`` is its ``model_type``; ``shards`` ("20KB") splits it.

    ``says``: what it replies to everything, each of its characters once; None: what a random model says.
    """
    torch.manual_seed(seed)
    tokenizer = tokenizer or byte_tokenizer()
    made = AutoConfig.for_model(
        family,
        vocab_size=len(tokenizer),
        hidden_size=d_model,
        intermediate_size=2 * d_model,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        tie_word_embeddings=tied,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        **config,
    )
    model = AutoModelForCausalLM.from_config(made)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(1.0 if "norm" in name else 0.0, 0.3)
        if says is not None:
            lead_through(model, [*tokenizer.encode("\n" + says), tokenizer.eos_token_id])
    model.to(dtype).save_pretrained(folder, **({"max_shard_size": shards} if shards else {}))
    tokenizer.save_pretrained(folder)
    return folder


def lead_through(model: PreTrainedModel, ids: list[int]) -> None:
    """Each of some tokens makes the next one likeliest, whatever blocks write: its embedding is long, and the next one's row of the head
    points there."""
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    axes = torch.linalg.qr(torch.randn(embedding.shape[1], embedding.shape[1], generator=torch.Generator().manual_seed(0)))[0]
    for axis, (token, following) in zip(axes, pairwise(ids), strict=False):
        embedding[token], head[following] = 100.0 * axis, 3.0 * axis


@pytest.fixture(scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache for this session, where the self-check of each architecture is kept."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True, scope="module")
def _away_from_the_users_cache(request: pytest.FixtureRequest, own_cache: Path) -> Iterator[None]:
    """Only the tests of the real model, which is built once, use the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        if request.node.get_closest_marker("real") is None:
            patch.setenv("ABLITERATE_CACHE", str(own_cache))
        yield


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., Path]:
    """``tiny("llama", tied=True, shards="20KB")`` gives a new model folder."""
    count = iter(range(1000))
    return lambda family="llama", **options: save_tiny(tmp_path / f"{family}-{next(count)}", family, **options)


@pytest.fixture
def refuser(tiny: Callable[..., Path]) -> Callable[..., Path]:
    """The same, of models that refuse everything."""
    return partial(tiny, says="I won't.")


@pytest.fixture
def unit_direction() -> Callable[[int], torch.Tensor]:
    """A random direction of length one."""

    def make(d_model: int, seed: int = 1) -> torch.Tensor:
        vector = torch.randn(d_model, generator=torch.Generator().manual_seed(seed))
        return vector / vector.norm()

    return make


def first_token_logprobs(model: Any, prompts: list[list[int]]) -> torch.Tensor:
    """What a model says of the first token behind each prompt, [prompt, vocab]."""
    from abliterate.measures.predictions import Firsts, ask

    ask(model, [heard := Firsts(prompts)])
    return heard.logprobs
