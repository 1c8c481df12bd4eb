"""Settings that would make a run cheaper, each with its saving: the same plan with one setting changed, on the same machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import torch

from abliterate.choice.method import method_of
from abliterate.compute.load import DTypeName
from abliterate.compute.memory import Holding, has_bf16_instructions, holding_of, whole
from abliterate.config import RunConfig
from abliterate.forecast.flow import limits_of
from abliterate.forecast.forecast import Forecast
from abliterate.forecast.stages import Figures, in_all, run_figures
from abliterate.forecast.steps import Prompts
from abliterate.forecast.words import duration, size

_WORTH = 0.05  # share of the time: a smaller saving is not worth a line
_FEW, _SHORT = 2, 32


def cheaper(forecast: Forecast) -> Iterator[str]:
    """The suggestions that apply, in words."""
    yield from _memory(forecast)
    yield from _narrower(forecast)
    yield from _engine(forecast)
    config = forecast.config
    if method_of(config, forecast.model.held.whole) != "off":
        yield from _saved(forecast, "--tune off (the chosen edit is not tuned)", config.model_copy(update={"tune": "off"}))
    if config.candidates > _FEW:
        yield from _saved(forecast, f"--candidates {_FEW}", config.model_copy(update={"candidates": _FEW}))
    if config.max_new_tokens > _SHORT and forecast.model.held.whole:
        yield from _saved(forecast, f"--max-new-tokens {_SHORT}", config.model_copy(update={"max_new_tokens": _SHORT}))
    yield from _saved(forecast, "half the prompts (--limit)", config, prompts=forecast.prompts.half())
    yield from _other_formats(forecast)


def _again(forecast: Forecast, config: RunConfig, prompts: Prompts | None = None, held: Holding | None = None) -> Figures:
    """The figures of the whole run with other settings, prompts or memory."""
    model = forecast.model if held is None else replace(forecast.model, held=held)
    manner = limits_of(config, model.folder, model.held, model.device)
    return in_all(run_figures(config, model, prompts or forecast.prompts, manner, forecast.edits, forecast.disk, forecast.machine))


def _saved(forecast: Forecast, what: str, config: RunConfig, prompts: Prompts | None = None) -> Iterator[str]:
    now, then = forecast.total, _again(forecast, config, prompts)
    if then.seconds < (1 - _WORTH) * now.seconds:
        sweeps = f", {now.sweeps - then.sweeps} fewer sweeps" if then.sweeps < now.sweeps else ""
        yield f"{what}: about {duration(then.seconds)} in total instead of {duration(now.seconds)}{sweeps}"


def _memory(forecast: Forecast) -> Iterator[str]:
    model = forecast.model
    if model.held.whole:
        return
    needed = whole(model.sizes, model.held.dtype, model.device)
    held = holding_of(model.sizes, _name(model.held.dtype), model.device, needed)
    then = _again(forecast, forecast.config, held=held)
    if then.seconds >= forecast.total.seconds:
        return
    yield (
        f"{size(needed - model.held.budget)} more memory ({size(needed)} in total) would hold the whole model: about "
        f"{duration(then.seconds)} in total instead of {duration(forecast.total.seconds)}, and replies of full length"
    )


def _narrower(forecast: Forecast) -> Iterator[str]:
    """A narrower type, if the processor has instructions for it."""
    model = forecast.model
    if model.held.dtype != torch.float32 or not (model.device.type != "cpu" or has_bf16_instructions()):
        return
    now = model.sizes.total * 4 if model.held.whole else model.sizes.block * 4
    what = "the model" if model.held.whole else "a block"
    yield f"--dtype bfloat16: {size(now / 2)} for {what} instead of {size(now)}, and faster matrix products"


def _engine(forecast: Forecast) -> Iterator[str]:
    if forecast.model.held.whole or forecast.config.engine != "transformers":
        return
    now, then = forecast.total, _again(forecast, forecast.config.model_copy(update={"engine": "vllm"}))
    if then.sweeps >= now.sweeps:
        return
    yield (
        f"--engine URL or vllm: final test with replies of full length instead of {forecast.manner.longest} tokens, by that engine: "
        f"{now.sweeps - then.sweeps} fewer sweeps, about {duration(then.seconds)} here instead of {duration(now.seconds)}"
    )


def _other_formats(forecast: Forecast) -> Iterator[str]:
    edits = forecast.edits
    for name, nbytes in edits.outputs.items():
        if nbytes is not None and nbytes < edits.written:
            yield f"edit --plan RUN/plan.safetensors --as {name}: writes {size(nbytes)} instead of {size(edits.written)}"


def _name(dtype: torch.dtype) -> DTypeName:
    return cast("DTypeName", str(dtype).removeprefix("torch."))
