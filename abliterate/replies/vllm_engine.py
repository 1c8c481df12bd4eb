"""Replies by vLLM in this process: many prompts at once, on several GPUs or nodes, with the same prompt tokens as other engines."""

from __future__ import annotations

import gc
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from abliterate.compute.draws import TEMPERATURE
from abliterate.errors import InputError, first_line
from abliterate.model.chat.template import encode
from abliterate.model.chat.thinking import decode, marks_are_dropped, opens_thought
from abliterate.prompts import PromptSet
from abliterate.replies.samples import GREEDY, Asked, Sampling
from abliterate.replies.transcripts import Transcript, append, in_order, missing, resume, transcript_of

SLICE = 256  # replies per call: the most that a kill can lose, and more than vLLM decodes at once


@dataclass(frozen=True)
class VllmEngine:
    """vLLM for a checkpoint folder. ``dtype``: the compute type (``bfloat16``, ...). ``tensor_parallel`` times ``pipeline_parallel``: the
    number of GPUs. ``ends``: the tokens that end a reply; vLLM may not know all of them."""

    folder: Path
    tokenizer: PreTrainedTokenizerBase
    dtype: str
    max_new_tokens: int
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    trust_remote_code: bool = False
    ends: frozenset[int] = frozenset()
    sampling: Sampling = GREEDY

    def answer(self, sets: Sequence[PromptSet], path: Path, advance: Callable[[int], None] = lambda done: None) -> list[Transcript]:
        """Replies to every prompt of every set, in their order, greedy ones first, written to ``path`` slice by slice.

        Resumes a file begun earlier. Raises InputError if vLLM is not installed, can't load the model, or fails.
        """
        wanted = self.sampling.asked(sets)
        kept = resume(path, wanted)
        advance(len(kept))
        left = missing(kept, wanted)
        encoded = encode(self.tokenizer, [asked.prompt.text for asked in left])
        opened = opens_thought(self.tokenizer)
        if left:
            llm = self._loaded(max(map(len, encoded)))
            try:
                for start in range(0, len(left), SLICE):
                    asked = left[start : start + SLICE]
                    made = self._replies(llm, asked, encoded[start : start + SLICE], opened)
                    append(path, made)
                    kept += made
                    advance(len(made))
            finally:
                del llm
                _close()
        return in_order(kept, wanted)

    def _loaded(self, longest_prompt: int) -> Any:
        """vLLM with the model loaded, with a context just long enough for the longest prompt and its reply."""
        check_installed()
        from vllm import LLM

        _free()  # GPU memory that this process still holds
        gpus = self.tensor_parallel * self.pipeline_parallel
        options: dict[str, Any] = {"distributed_executor_backend": "ray"} if gpus > max(torch.cuda.device_count(), 1) else {}
        try:
            return LLM(
                model=str(self.folder),
                dtype=self.dtype,
                max_model_len=longest_prompt + self.max_new_tokens,
                tensor_parallel_size=self.tensor_parallel,
                pipeline_parallel_size=self.pipeline_parallel,
                trust_remote_code=self.trust_remote_code,
                enable_prefix_caching=True,
                seed=0,
                **options,
            )
        except Exception as error:  # errors of vLLM, CUDA, Ray or pydantic
            raise InputError(f"{self.folder}: vLLM can't load it ({first_line(error)})") from error

    def _replies(self, llm: Any, asked: Sequence[Asked], encoded: Sequence[list[int]], opened: bool) -> list[Transcript]:
        given = [self._params(one) for one in asked]
        try:
            outputs = llm.generate([{"prompt_token_ids": ids} for ids in encoded], given, use_tqdm=False)
        except Exception as error:  # the engine died, or memory ran out
            raise InputError(
                f"{self.folder}: vLLM failed ({first_line(error)}); finished replies are kept; run the same command again to resume"
            ) from error
        replies = [output.outputs[0] for output in outputs]
        made = []
        for one, reply in zip(asked, replies, strict=True):
            ids = list(reply.token_ids[: len(reply.token_ids) - (reply.finish_reason == "stop")])
            text = decode(self.tokenizer, ids) if marks_are_dropped(self.tokenizer) else reply.text
            made.append(transcript_of(one, text, len(ids), opened, reply.finish_reason == "length"))
        return made

    def _params(self, asked: Asked) -> Any:
        """How vLLM chooses the tokens of a reply; a sampled one has a seed of its own, and vLLM's defaults draw from all tokens."""
        from vllm import SamplingParams

        temperature, seed = (TEMPERATURE, self.sampling.seed_of(asked)) if asked.sample else (0.0, 0)
        return SamplingParams(temperature=temperature, max_tokens=self.max_new_tokens, seed=seed, stop_token_ids=sorted(self.ends))


def check_installed() -> None:
    """Raises InputError if vLLM is not installed. Does not import it, which is slow."""
    if "vllm" not in sys.modules and importlib.util.find_spec("vllm") is None:
        raise InputError("--engine vllm: vLLM is not installed; pip install 'abliterate[vllm]', or give the URL of a server")


def version() -> str | None:
    """vLLM's version; None if it has none."""
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version("vllm")
    return None


def _free() -> None:
    """Release the GPU memory that torch caches."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _close() -> None:
    """Release what vLLM leaves behind: process groups and GPU memory."""
    gc.collect()
    with suppress(ImportError):
        from vllm.distributed import cleanup_dist_env_and_memory

        cleanup_dist_env_and_memory()
    _free()
