"""What would make a run cheaper, each with what it would save: the same plan with another setting, on the same machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import torch

from abliterate.choice.way import way
from abliterate.compute.load import DTypeName
from abliterate.compute.memory import Fit, fit, has_bf16_instructions, whole
from abliterate.config import RunConfig
from abliterate.forecast.flow import manner_of
from abliterate.forecast.forecast import RunPlan
from abliterate.forecast.stages import Figures, in_all, run_figures
from abliterate.forecast.steps import Prompts
from abliterate.forecast.words import duration, size

_WORTH = 0.05  # of the time: what saves less is not worth a line
_FEW, _SHORT = 2, 32


def cheaper(plan: RunPlan) -> Iterator[str]:
    """Suggestions that apply, in words."""
    yield from _memory(plan)
    yield from _narrower(plan)
    yield from _engine(plan)
    config = plan.config
    if way(config, plan.model.held.resident) != "off":
        yield from _saved(plan, "--tune off (the edit is chosen, but not improved on)", config.model_copy(update={"tune": "off"}))
    if config.candidates > _FEW:
        yield from _saved(plan, f"--candidates {_FEW}", config.model_copy(update={"candidates": _FEW}))
    if config.max_new_tokens > _SHORT and plan.model.held.resident:
        yield from _saved(plan, f"--max-new-tokens {_SHORT}", config.model_copy(update={"max_new_tokens": _SHORT}))
    yield from _saved(plan, "half the prompts (--limit)", config, prompts=plan.prompts.half())
    yield from _adapter(plan)


def _again(plan: RunPlan, config: RunConfig, prompts: Prompts | None = None, held: Fit | None = None) -> Figures:
    """The whole run with something else."""
    model = plan.model if held is None else replace(plan.model, held=held)
    manner = manner_of(config, model.folder, model.held, model.device)
    return in_all(run_figures(config, model, prompts or plan.prompts, manner, plan.edits, plan.disk, plan.machine))


def _saved(plan: RunPlan, what: str, config: RunConfig, prompts: Prompts | None = None) -> Iterator[str]:
    now, then = plan.total, _again(plan, config, prompts)
    if then.seconds < (1 - _WORTH) * now.seconds:
        sweeps = f", {now.sweeps - then.sweeps} sweeps less" if then.sweeps < now.sweeps else ""
        yield f"{what}: about {duration(then.seconds)} in all instead of {duration(now.seconds)}{sweeps}"


def _memory(plan: RunPlan) -> Iterator[str]:
    model = plan.model
    if model.held.resident:
        return
    needed = whole(model.sizes, model.held.dtype, model.device)
    held = fit(model.sizes, _name(model.held.dtype), model.device, needed)
    then = _again(plan, plan.config, held=held)
    yield (
        f"{size(needed - model.held.budget)} more memory ({size(needed)} in all) would hold it whole: about {duration(then.seconds)} "
        f"in all instead of {duration(plan.total.seconds)}, and whole replies"
    )


def _narrower(plan: RunPlan) -> Iterator[str]:
    """A narrower type, where the processor has instructions for it."""
    model = plan.model
    if model.held.dtype != torch.float32 or not (model.device.type != "cpu" or has_bf16_instructions()):
        return
    now = model.sizes.total * 4 if model.held.resident else model.sizes.block * 4
    what = "the model" if model.held.resident else "a block"
    yield f"--dtype bfloat16: {size(now / 2)} for {what} instead of {size(now)}, and faster products on this processor"


def _engine(plan: RunPlan) -> Iterator[str]:
    if plan.model.held.resident or plan.config.engine != "transformers":
        return
    now, then = plan.total, _again(plan, plan.config.model_copy(update={"engine": "vllm"}))
    yield (
        f"--engine URL or vllm: the replies of the final test are whole, not {plan.manner.longest} tokens, and written elsewhere: "
        f"{now.sweeps - then.sweeps} sweeps less, about {duration(then.seconds)} here instead of {duration(now.seconds)}"
    )


def _adapter(plan: RunPlan) -> Iterator[str]:
    if plan.edits.adapter is not None:
        written = next(stage for stage in plan.stages if stage.stage == "edit").write_bytes
        yield f"the plan that a run chooses, given to edit --as-adapter, writes {size(plan.edits.adapter)} instead of {size(written)}"


def _name(dtype: torch.dtype) -> DTypeName:
    return cast("DTypeName", str(dtype).removeprefix("torch."))
