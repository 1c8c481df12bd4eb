"""A plan for people: plain lines, a name and what there is to say."""

from __future__ import annotations

from collections.abc import Iterator

from abliterate.forecast.advice import cheaper
from abliterate.forecast.forecast import Forecast
from abliterate.forecast.stages import Figures
from abliterate.forecast.words import count, duration, listed, operations, size

_KINDS = {"attention": "attention outputs", "mlp": "MLP downs", "mtp": "of multi-token prediction"}


def lines(forecast: Forecast) -> list[str]:
    """The plan, a figure or a few a line."""
    return [f"{name:<12} {text}" for name, text in _rows(forecast)]


def _rows(forecast: Forecast) -> Iterator[tuple[str, str]]:
    model = forecast.model
    folder, sizes = model.folder, model.sizes
    yield "model", f"{folder.path} ({folder.model_type}, {folder.layers} blocks of width {folder.d_model})"
    working = model.costs.working + model.costs.head
    some = f", {count(working)} of them for each token" if working < 0.9 * sizes.total else ""
    form = f", {folder.quantisation.upper()}" if folder.quantisation else ""
    yield "weights", f"{count(sizes.total)} numbers{some}; {size(forecast.disk.nbytes)} in {listed(forecast.shards, 'file')}{form}"
    if not forecast.here:
        yield "", "they are not here: shapes are from config.json, names and bytes from model.safetensors.index.json"
    yield "held", _held(forecast)
    if forecast.unfit:
        yield "fits", f"no: {forecast.unfit}. The figures below are for a machine with just enough"
    guessed = "" if forecast.prompts.exact else ", as guessed: no tokenizer"
    lengths = f"{forecast.prompts.tokens / max(len(forecast.prompts), 1):.0f} tokens each{guessed}"
    yield "prompts", f"{len(forecast.prompts)} of {', '.join(forecast.prompts.test)}; {lengths}"
    for stage in forecast.stages:
        yield stage.stage, _stage(stage)
    yield "in all", f"{_stage(forecast.total)}; {size(forecast.free_bytes)} are free beside the model"
    yield from _edits(forecast)
    yield "machine", _machine(forecast)
    for advice in cheaper(forecast):
        yield "cheaper", advice


def _held(forecast: Forecast) -> str:
    held, device = forecast.model.held, forecast.model.device
    dtype = str(held.dtype).removeprefix("torch.")
    room = f"{size(held.budget)} may be taken"
    if held.whole:
        return f"whole, in {dtype} on {device}{f' and {len(held.gpus) - 1} more' if len(held.gpus) > 1 else ''} ({room})"
    ahead = "the next one is read while one computes" if held.ahead else "one after the other"
    head = "the unembedding whole" if held.whole_head else "the unembedding piece by piece"
    return f"block by block, in {dtype} on {device} ({room}): {ahead}, at most {held.tokens} tokens at once, {head}"


def _stage(stage: Figures) -> str:
    parts = [listed(stage.sweeps, "sweep", at_most=True)] if stage.sweeps else []
    parts.append(f"reads {size(stage.read_bytes)}")
    if stage.write_bytes:
        parts.append(f"writes {size(stage.write_bytes)}")
    parts.append(operations(stage.flops))
    if stage.stream_bytes:
        parts.append(f"streams of {size(stage.stream_bytes)}" + (f" ({size(stage.spilled_bytes)} in files)" if stage.spilled_bytes else ""))
    if stage.cache_bytes:
        parts.append(f"keys and values of {size(stage.cache_bytes)}")
    parts.append(f"{size(stage.peak_bytes)} of memory")
    return "; ".join([*parts, f"about {duration(stage.seconds)}"])


def _edits(forecast: Forecast) -> Iterator[tuple[str, str]]:
    edits = forecast.edits
    kinds = ", ".join(f"{n} {_KINDS[kind]}" for kind, n in edits.kinds.items())
    yield "edits", f"{edits.tensors} tensors in the blocks: {kinds}; {size(edits.nbytes)} with what stands outside them"
    others = ", ".join(f"{n} {kind}" for kind, n in edits.shared.items() if kind != "embedding")
    yield "embedding", edits.embedding + (f" (with it: {others})" if others else "")
    yield "left alone", edits.left
    if edits.format:
        yield "format", edits.format


def _machine(forecast: Forecast) -> str:
    machine = forecast.machine
    dtype = str(forecast.model.held.dtype).removeprefix("torch.")
    reading = f"reads {size(machine.read)}/s ({machine.how})"
    again = f", {size(machine.again)}/s what it has read before" if forecast.disk.cached else ""
    products = f"{machine.many / 1e9:.0f} GFLOP/s in {dtype}, {machine.few / 1e9:.0f} for a few rows"
    edits = f"edits {machine.edit / 1e6:.0f} M numbers/s"
    return f"{reading}{again}, writes {size(machine.write)}/s; {products}; {edits}: two seconds of measuring"
