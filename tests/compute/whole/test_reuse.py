"""What a model in memory may use again, where no copy of its architecture can be asked."""

from __future__ import annotations

import pytest
from families import FAMILIES
from held import held

from abliterate.compute.whole import reuse
from abliterate.compute.whole.reuse import Reuse, reuse_of
from abliterate.errors import InputError


def test_nothing_is_used_again_where_no_small_copy_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = held(next(case for case in FAMILIES if str(case) == "llama")).folder

    def fails(*_: object) -> None:
        raise InputError("no such layers")

    monkeypatch.setattr(reuse, "_known", {})
    monkeypatch.setattr(reuse, "tiny_model", fails)
    assert reuse_of(folder) == Reuse()
