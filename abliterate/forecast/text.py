"""The plan as text for people: lines of a name and a description."""

from __future__ import annotations

from collections.abc import Iterator

from abliterate.forecast.advice import cheaper
from abliterate.forecast.forecast import Forecast
from abliterate.forecast.stages import Figures
from abliterate.forecast.words import count, duration, listed, operations, size

_KINDS = {"attention": "attention output projections", "mlp": "MLP down projections", "mtp": "in multi-token prediction"}


def lines(forecast: Forecast) -> list[str]:
    """The plan, with one or a few figures per line."""
    return [f"{name:<12} {text}" for name, text in _rows(forecast)]


def _rows(forecast: Forecast) -> Iterator[tuple[str, str]]:
    model = forecast.model
    folder, sizes = model.folder, model.sizes
    yield "model", f"{folder.path} ({folder.model_type}, {folder.layers} blocks of width {folder.d_model})"
    working = model.costs.working + model.costs.head
    some = f", of which each token uses {count(working)}" if working < 0.9 * sizes.total else ""
    form = f", {folder.stored.label}" if folder.quantisation else ""
    yield "weights", f"{count(sizes.total)} parameters{some}; {size(forecast.disk.nbytes)} in {listed(forecast.shards, 'file')}{form}"
    if not forecast.here:
        yield "", "the weights are not in the folder; shapes are taken from config.json, names and bytes from model.safetensors.index.json"
    yield "memory", _held(forecast)
    if forecast.unfit:
        yield "fits", f"no: {forecast.unfit}. The figures below assume just enough memory"
    guessed = "" if forecast.prompts.exact else " (estimated: there is no tokenizer)"
    lengths = f"{forecast.prompts.tokens / max(len(forecast.prompts), 1):.0f} tokens on average{guessed}"
    yield "prompts", f"{len(forecast.prompts)} from {', '.join(forecast.prompts.test)}; {lengths}"
    for stage in forecast.stages:
        yield stage.stage, _stage(stage)
    yield "total", f"{_stage(forecast.total)}; the model's disk has {size(forecast.free_bytes)} free"
    yield from _edits(forecast)
    yield "machine", _machine(forecast)
    for advice in cheaper(forecast):
        yield "cheaper", advice


def _held(forecast: Forecast) -> str:
    held, device = forecast.model.held, forecast.model.device
    dtype = str(held.dtype).removeprefix("torch.")
    room = f"limit {size(held.budget)}"
    if held.whole:
        return f"holds the whole model, in {dtype} on {device}{f' and {len(held.gpus) - 1} more' if len(held.gpus) > 1 else ''} ({room})"
    ahead = "reads the next block while one computes" if held.ahead else "reads and computes in turn"
    head = "holds the whole unembedding" if held.whole_head else "reads the unembedding piece by piece"
    return f"holds the model block by block, in {dtype} on {device} ({room}): {ahead}, at most {held.tokens} tokens at once, {head}"


def _stage(stage: Figures) -> str:
    parts = [f"{listed(stage.sweeps, 'sweep', at_most=True)} over all weights"] if stage.sweeps else []
    parts.append(f"reads {size(stage.read_bytes)} from disk")
    if stage.write_bytes:
        parts.append(f"writes {size(stage.write_bytes)}")
    parts.append(f"computes {operations(stage.flops)}")
    if stage.stream_bytes:
        parts.append(
            f"residual streams {size(stage.stream_bytes)}" + (f" ({size(stage.spilled_bytes)} on disk)" if stage.spilled_bytes else "")
        )
    if stage.cache_bytes:
        parts.append(f"KV cache {size(stage.cache_bytes)}")
    parts.append(f"peak memory {size(stage.peak_bytes)}")
    return "; ".join([*parts, f"about {duration(stage.seconds)}"])


def _edits(forecast: Forecast) -> Iterator[tuple[str, str]]:
    edits = forecast.edits
    kinds = ", ".join(f"{n} {_KINDS[kind]}" for kind, n in edits.kinds.items())
    yield "edits", f"{edits.tensors} tensors in the blocks: {kinds}; at most {size(edits.nbytes)} with those outside the blocks"
    others = ", ".join(f"{n} {kind}" for kind, n in edits.shared.items() if kind != "embedding")
    yield "embedding", edits.embedding + (f" (the same for: {others})" if others else "")
    yield "not edited", edits.left
    if edits.format:
        yield "format", edits.format


def _machine(forecast: Forecast) -> str:
    machine = forecast.machine
    dtype = str(forecast.model.held.dtype).removeprefix("torch.")
    reading = f"reads {size(machine.read)}/s ({machine.how})"
    again = f", {size(machine.again)}/s from the page cache" if forecast.disk.cached else ""
    products = f"computes {machine.many / 1e9:.0f} GFLOP/s on prompts and {machine.few / 1e9:.0f} GFLOP/s on replies, in {dtype}"
    edits = f"edits {machine.edit / 1e6:.0f} M parameters/s"
    return f"{reading}{again}, writes {size(machine.write)}/s; {products}; {edits} (measured in two seconds)"
