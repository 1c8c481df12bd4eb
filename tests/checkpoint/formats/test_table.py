"""The table of output formats: it and the settings name the same ones, and each writes what it forecasts and is told by what it wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from abliterate.checkpoint.formats.format import Job, WholeEdit
from abliterate.checkpoint.formats.table import TABLE, format_in, sizes
from abliterate.checkpoint.tasks import placed_writers
from abliterate.config import VerifyConfig
from abliterate.config.formats import OUTPUT_FORMATS
from abliterate.model.agreement import open_checkpoint
from abliterate.model.edit import edit_from_direction

Tiny = Callable[..., Path]
Direction = Callable[[int], torch.Tensor]


def _job(base: Path, out: Path, direction: torch.Tensor) -> Job:
    folder, index = open_checkpoint(base)
    edit = edit_from_direction(direction, folder.layers, policy="skip")
    return Job(folder, index, edit, out, "base", None, None, lambda proof: "card\n")


def test_the_settings_name_the_formats_of_the_table_in_its_order() -> None:
    assert list(OUTPUT_FORMATS) == list(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_what_a_format_writes_is_recognised_as_its_own(name: str, tiny: Tiny, tmp_path: Path, unit_direction: Direction) -> None:
    said = TABLE[name].write(_job(tiny(), tmp_path / "out", unit_direction(32)))
    assert said.startswith(f"{tmp_path / 'out'}: ") and "\n" not in said
    assert format_in(tmp_path / "out") == name and format_in(tmp_path) is None


@pytest.mark.parametrize("name", TABLE)
def test_a_format_forecasts_the_bytes_of_the_tensors_that_it_writes(
    name: str, tiny: Tiny, tmp_path: Path, unit_direction: Direction
) -> None:
    job = _job(tiny(), tmp_path / "out", unit_direction(32))
    TABLE[name].write(job)
    files = [path.read_bytes() for path in job.out.glob("*.safetensors")]
    headers = sum(8 + int.from_bytes(data[:8], "little") for data in files)
    whole = WholeEdit(job.folder, job.index, placed_writers(job.index, job.folder), job.index.nbytes)
    forecast, written = sizes(whole)[name], sum(map(len, files))
    assert forecast is not None and written - headers <= forecast <= written


def test_a_checkpoint_verifies_and_an_adapter_holds_no_proof(tiny: Tiny, tmp_path: Path, unit_direction: Direction) -> None:
    TABLE["checkpoint"].write(_job(tiny(), tmp_path / "out", unit_direction(32)))
    verify = TABLE["checkpoint"].verify
    assert verify is not None and TABLE["adapter"].verify is None
    assert "edited tensors match the proof" in verify(VerifyConfig(), tmp_path / "out")
