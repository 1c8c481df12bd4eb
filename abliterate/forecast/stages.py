"""What each stage of a run reads, writes, computes and holds, and how long it takes on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from abliterate.config import RunConfig
from abliterate.forecast.edits import Edits
from abliterate.forecast.flow import ComputeLimits, Flow, flow_of
from abliterate.forecast.footprint import (
    Model,
    cache_bytes,
    collected_bytes,
    editing_bytes,
    gradient_bytes,
    loading_bytes,
    peak_bytes,
    streams_bytes,
)
from abliterate.forecast.machine import Machine
from abliterate.forecast.steps import Prompts, Stage, Step, run_steps

LOADS = {"collection": 1, "selection": 0, "evaluation": 2}  # of a model held whole: the base; the edited model, and the base again
REFERENCE_LOADS = 2  # the reference, and the base again after it
EFFICIENCY = 0.6  # share of the speed of a pure matrix product; attention, norms and overhead cost the rest
_PROVEN = 1.5  # times the work of editing: each edited tensor is measured again for the proof
ORDER: tuple[Stage, ...] = ("collection", "selection", "edit", "evaluation")


@dataclass(frozen=True)
class Figures:
    """Figures of one stage or of a run. ``sweeps``: how often all blocks are read. ``read_bytes``, ``write_bytes``: disk traffic.
    ``flops``: floating-point operations. ``stream_bytes``: residual streams of one sweep; ``spilled_bytes``: those kept in files.
    ``cache_bytes``: KV cache. ``peak_bytes``: memory."""

    stage: str
    sweeps: int = 0
    read_bytes: int = 0
    write_bytes: int = 0
    flops: float = 0.0
    stream_bytes: int = 0
    spilled_bytes: int = 0
    cache_bytes: int = 0
    peak_bytes: int = 0
    seconds: float = 0.0

    def plus(self, other: Figures) -> Figures:
        """Both in sequence: work adds up, memory is the larger of the two."""
        return Figures(
            self.stage,
            self.sweeps + other.sweeps,
            self.read_bytes + other.read_bytes,
            self.write_bytes + other.write_bytes,
            self.flops + other.flops,
            max(self.stream_bytes, other.stream_bytes),
            max(self.spilled_bytes, other.spilled_bytes),
            max(self.cache_bytes, other.cache_bytes),
            max(self.peak_bytes, other.peak_bytes),
            self.seconds + other.seconds,
        )


@dataclass(frozen=True)
class Disk:
    """A checkpoint's bytes on disk, and whether all of them stay in the page cache once they were read."""

    nbytes: int
    cached: bool

    def speed(self, machine: Machine) -> float:
        """Bytes per second of every reading after the first."""
        return machine.again if self.cached else machine.read


def run_figures(
    config: RunConfig, model: Model, prompts: Prompts, manner: ComputeLimits, edits: Edits, disk: Disk, machine: Machine
) -> tuple[Figures, ...]:
    """The figures of each stage, in the order of a run."""
    collected = collected_bytes(model, prompts)
    found = {stage: Figures(stage) for stage in ORDER}
    found["collection"] = _hashed(disk, machine)
    for stage, loads in LOADS.items():
        further = REFERENCE_LOADS if stage == "evaluation" and config.reference is not None else 0
        found[stage] = found[stage].plus(_loaded(model, loads + further, disk, machine))  # type: ignore[index]
    for step in run_steps(config, prompts, model.folder.layers, model.held.whole):
        flow = flow_of(step, model.folder, manner)
        found[step.stage] = found[step.stage].plus(_of_step(step, flow, model, collected, disk, machine))
    found["edit"] = _of_edit(edits, disk, machine)
    return tuple(found[stage] for stage in ORDER)


def in_all(stages: Sequence[Figures]) -> Figures:
    """The figures of the whole run."""
    total = Figures("in all")
    for stage in stages:
        total = total.plus(stage)
    return replace(total, stage="in all")


def _hashed(disk: Disk, machine: Machine) -> Figures:
    """A run begins by hashing all files of the model."""
    return Figures("collection", read_bytes=disk.nbytes, seconds=disk.nbytes / machine.read)


def _loaded(model: Model, loads: int, disk: Disk, machine: Machine) -> Figures:
    """Loading a model that is held whole ``loads`` times."""
    if not model.held.whole or not loads:
        return Figures("")
    seconds = loads * (disk.nbytes / disk.speed(machine) + _widening(model, machine))
    return Figures("", read_bytes=loads * disk.nbytes, peak_bytes=loading_bytes(model), seconds=seconds)


def _of_step(step: Step, flow: Flow, model: Model, collected: int, disk: Disk, machine: Machine) -> Figures:
    prompts, replies = flow.flops(model.costs)
    computing = [prompts / machine.many / EFFICIENCY] + [replies / max(flow.replied, 1) / machine.few / EFFICIENCY] * flow.replied
    streams = streams_bytes(model, flow)
    whole = Figures(
        step.stage,
        flops=prompts + replies,
        stream_bytes=streams,
        spilled_bytes=max(0, streams - model.held.spill_bytes),
        cache_bytes=cache_bytes(model, flow),
        peak_bytes=peak_bytes(model, flow, collected),
    )
    if step.gradients:  # the backward pass costs as much as the forward pass
        whole, computing = (
            replace(whole, flops=2 * whole.flops, peak_bytes=gradient_bytes(model, flow, collected)),
            [2 * c for c in computing],
        )
    if model.held.whole:
        return replace(whole, seconds=sum(computing))
    heads = flow.heads if not model.held.whole_head else min(flow.heads, 1)
    read = model.costs.sweep_bytes + heads * model.costs.head_bytes
    reading = read / disk.speed(machine) + _widening(model, machine)
    both = max if model.held.ahead else sum
    return replace(whole, sweeps=step.sweeps, read_bytes=step.sweeps * read, seconds=sum(both((reading, part)) for part in computing))


def _widening(model: Model, machine: Machine) -> float:
    """Seconds to convert all weights to the compute type."""
    return model.sizes.total / machine.widen if machine.widen else 0.0


def _of_edit(edits: Edits, disk: Disk, machine: Machine) -> Figures:
    moving = disk.nbytes / disk.speed(machine) + edits.written / machine.write + edits.nbytes / machine.again
    return Figures(
        "edit",
        read_bytes=disk.nbytes + edits.nbytes,
        write_bytes=edits.written,
        flops=8.0 * edits.numbers,
        peak_bytes=editing_bytes(edits.largest),
        seconds=max(moving, _PROVEN * edits.numbers / machine.edit),
    )
