"""The forecast of a run: everything that can be known before it starts."""

from __future__ import annotations

import math
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from abliterate.checkpoint.edit import check_editable
from abliterate.checkpoint.selfcheck import self_check
from abliterate.compute.memory import Holding, Sizes, holding_of, least, sizes_of
from abliterate.compute.session import Session
from abliterate.config import RunConfig
from abliterate.errors import InputError
from abliterate.forecast.arithmetic import arithmetic_of
from abliterate.forecast.edits import Edits, edits_of
from abliterate.forecast.flow import ComputeLimits, flow_of, limits_of
from abliterate.forecast.footprint import Model
from abliterate.forecast.machine import Machine, Shapes, measure
from abliterate.forecast.shapes import imagined, lacks_weights
from abliterate.forecast.stages import Disk, Figures, in_all, run_figures
from abliterate.forecast.steps import Prompts, read_prompts, run_steps
from abliterate.model.agreement import check_agreement, tell
from abliterate.model.folder import ModelFolder, open_folder
from abliterate.model.formats.format import InPlace
from abliterate.model.formats.plain import PLAIN
from abliterate.model.formats.table import format_of
from abliterate.model.index import DTYPES, ShardIndex, open_index


@dataclass(frozen=True)
class Forecast:
    """The forecast of a run. ``here``: the weights are in the folder. ``unfit``: why the model does not fit into memory, or None."""

    config: RunConfig
    model: Model
    prompts: Prompts
    manner: ComputeLimits
    edits: Edits
    disk: Disk
    machine: Machine
    here: bool
    shards: int
    free_bytes: int
    unfit: str | None
    stages: tuple[Figures, ...]

    @property
    def total(self) -> Figures:
        return in_all(self.stages)


def forecast_run(config: RunConfig, path: Path) -> Forecast:
    """Forecast a run of the model in ``path``; measuring takes two seconds. Raises InputError as the run would, except for missing weights,
    a missing tokenizer, or a model of which not even one block fits into memory."""
    folder = open_folder(path, config.trust_remote_code, config.layout_file)
    index, nbytes, here = _opened(folder)
    edits = edits_of(index, folder, nbytes, config)
    sizes = sizes_of(index, folder)
    session = Session(config, path, sizes)
    held, unfit = _held(session, sizes)
    model = Model(
        folder=folder,
        sizes=sizes,
        costs=arithmetic_of(index, folder),
        held=held,
        device=session.device,
        stored_bytes=nbytes,
        stored_width=_stored_width(index),
        quantised=folder.quantisation is not None,
    )
    prompts = read_prompts(config, folder)
    manner = limits_of(config, folder, held, session.device)
    disk = Disk(nbytes, nbytes < psutil.virtual_memory().available - (held.peak if session.device.type == "cpu" else 0))
    machine = measure(index, here, _shapes(config, model, prompts, manner, index))
    return Forecast(
        config=config,
        model=model,
        prompts=prompts,
        manner=manner,
        edits=edits,
        disk=disk,
        machine=machine,
        here=here,
        shards=len(index.shards),
        free_bytes=shutil.disk_usage(path).free,
        unfit=unfit,
        stages=run_figures(config, model, prompts, manner, edits, disk, machine),
    )


def _opened(folder: ModelFolder) -> tuple[ShardIndex, int, bool]:
    """The index of the folder, the bytes of the weights, and whether they are there; with the checks of a run."""
    if lacks_weights(folder.path):
        index, nbytes = imagined(folder)
        tell(folder, check_agreement(folder, index))
        self_check(folder, index)
        return index, nbytes, False
    index = open_index(folder.path)
    tell(folder, check_agreement(folder, index))
    check_editable(folder)
    return index, index.nbytes, True


def _held(session: Session, sizes: Sizes) -> tuple[Holding, str | None]:
    """How the model is held. If it does not fit, how it would be held in just enough memory, and the reason."""
    try:
        return session.holding, None
    except InputError as error:
        dtype = torch.bfloat16
        needed = least(sizes, dtype, session.device)
        return holding_of(sizes, "bfloat16", session.device, needed), str(error).removeprefix("--max-memory: ")


def _stored_width(index: ShardIndex) -> int:
    """Bytes per element of the largest stored tensor."""
    largest = max(index.tensors.values(), key=lambda info: math.prod(info.shape))
    return DTYPES[largest.dtype][1]


def _shapes(config: RunConfig, model: Model, prompts: Prompts, manner: ComputeLimits, index: ShardIndex) -> Shapes:
    """The shapes to measure the machine with: those of the products that dominate this run."""
    flows = [flow_of(step, model.folder, manner) for step in run_steps(config, prompts, model.folder.layers, model.held.whole)]
    replies = [min(flow.live, manner.tokens) for flow in flows if flow.live]
    stored, kind = _stored(index, model.folder)
    return Shapes(
        many=min(256, max(flow.largest for flow in flows)),
        few=min(128, max(replies, default=1)),
        d_model=model.folder.d_model,
        wide=model.sizes.widest,
        dtype=model.held.dtype,
        stored=stored,
        kind=kind,
        device=model.device,
    )


def _stored(index: ShardIndex, folder: ModelFolder) -> tuple[InPlace, str]:
    """The format and stored type of matrices to measure with: quantised ones that are edited in place, else the most common type that can
    be computed with."""
    matrices = [info for info in index.tensors.values() if len(info.shape) > 1]
    for info in matrices:
        stored = format_of(info, folder.stored)
        if stored is not PLAIN and stored.written is stored:
            return stored.written, info.dtype
    kinds = [info.dtype for info in matrices if info.dtype in ("F32", "F16", "BF16")]
    return PLAIN, max(set(kinds), key=kinds.count, default="BF16")


def as_json(forecast: Forecast) -> dict[str, Any]:
    """All figures of a forecast as JSON, in bytes, operations and seconds."""
    model = forecast.model
    return {
        "schema": "abliterate/plan/1",
        "model": {
            "path": str(model.folder.path), "type": model.folder.model_type, "blocks": model.folder.layers,
            "d_model": model.folder.d_model, "bytes": forecast.disk.nbytes, "shards": forecast.shards, "here": forecast.here,
            "quantisation": model.folder.quantisation,
        },
        "numbers": {**asdict(model.sizes), "working": model.costs.working + model.costs.head},
        "held": {
            **asdict(model.held),
            "dtype": str(model.held.dtype).removeprefix("torch."),
            "device": str(model.device),
            "unfit": forecast.unfit,
        },
        "prompts": {"n": len(forecast.prompts), "tokens": forecast.prompts.tokens, "exact": forecast.prompts.exact},
        "stages": [asdict(stage) for stage in forecast.stages],
        "total": asdict(forecast.total),
        "edits": _edits(forecast.edits),
        "machine": asdict(forecast.machine),
    }  # fmt: skip


def _edits(edits: Edits) -> dict[str, Any]:
    """The edits, with the bytes of each output format beside the other figures."""
    found = asdict(edits)
    outputs: dict[str, Any] = found.pop("outputs")
    return {**found, **outputs}
