"""Short names of models."""

from __future__ import annotations

import re

from abliterate.model.fixtures.refuser import BUILT_HERE
from abliterate.model.names import HUB_IDS


def test_short_names_are_lower_case_and_no_hub_ids() -> None:
    assert [name for name in HUB_IDS if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", name)] == []


def test_every_short_name_stands_for_a_hub_id_of_its_own() -> None:
    assert all(re.fullmatch(r"[\w-]+/[\w.-]+", hub_id) for hub_id in HUB_IDS.values())
    assert len({hub_id.lower() for hub_id in HUB_IDS.values()}) == len(HUB_IDS)


def test_every_number_of_a_short_name_is_in_its_hub_id() -> None:
    """So that no name of one size stands for a model of another."""
    for name, hub_id in HUB_IDS.items():
        assert set(re.findall(r"\d[\d.]*b?", name)) <= set(re.findall(r"\d[\d.]*b?", hub_id.lower())), name


def test_no_name_is_both_built_here_and_on_the_hub() -> None:
    assert BUILT_HERE.keys().isdisjoint(HUB_IDS)


def test_the_names_that_the_documentation_uses_are_there() -> None:
    assert "deepseek-r1-distill-qwen-32b" in HUB_IDS and "smollm2-refuser" in BUILT_HERE
