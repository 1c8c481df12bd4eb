"""Where an edited checkpoint comes from, in its own files: headers of shards, licence, side files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from abliterate import __version__
from abliterate.checkpoint.edit import edit_checkpoint
from abliterate.checkpoint.licence import stated_licence
from abliterate.checkpoint.names import PLAN
from abliterate.checkpoint.provenance import edit_digest
from abliterate.checkpoint.verify import verify
from abliterate.errors import CheckError
from abliterate.model.edit import edit_from_direction, load_edit
from abliterate.model.folder import open_folder
from abliterate.model.index import open_index

Tiny = Callable[..., Path]
Unit = Callable[..., torch.Tensor]
TEXT = "A licence\r\nof two lines, and no end"


def edited(model: Path, out: Path, direction: torch.Tensor) -> Path:
    edit_checkpoint(open_folder(model), edit_from_direction(direction, 4), out, "org/base", lambda proof: "card\n", revision="abc")
    return out


def header(shard: Path) -> dict[str, str]:
    with safe_open(shard, "pt") as file:
        return dict(file.metadata() or {})


@pytest.mark.parametrize("shards", [None, "20KB"])
def test_edited_shards_name_the_program_the_base_and_the_plan_and_the_others_are_the_bases(
    tiny: Tiny, unit_direction: Unit, tmp_path: Path, shards: str | None
) -> None:
    model = tiny(shards=shards)
    out = edited(model, tmp_path / "out", unit_direction(32))
    proof = json.loads((out / "abliteration.json").read_text())
    index = open_index(out)
    touched = {index.tensors[entry["name"]].shard for entry in proof["tensors"]}
    said = {"format": "pt", "abliterate": __version__, "abliterate_base": "org/base", "abliterate_plan": edit_digest(load_edit(out / PLAN))}
    assert all(header(out / shard) == said for shard in touched)
    for shard in set(index.shards) - touched:
        assert (out / shard).read_bytes() == (model / shard).read_bytes()
    assert proof["base_revision"] == "abc"
    AutoModelForCausalLM.from_pretrained(out)


def test_tensors_keep_their_place_in_the_file_systems_blocks(tiny: Tiny, unit_direction: Unit, tmp_path: Path) -> None:
    model = tiny()
    old, new = open_index(model), open_index(edited(model, tmp_path / "out", unit_direction(32)))
    assert all(new.tensors[name].start % 4096 == info.start % 4096 for name, info in old.tensors.items())


def test_an_edit_by_the_published_plan_gives_the_same_shards(tiny: Tiny, unit_direction: Unit, tmp_path: Path) -> None:
    model = tiny(shards="20KB")
    once = edited(model, tmp_path / "once", unit_direction(32))
    edit_checkpoint(open_folder(model), load_edit(once / PLAN), tmp_path / "again", "org/base", lambda proof: "")
    for shard in open_index(once).shards:
        assert (tmp_path / "again" / shard).read_bytes() == (once / shard).read_bytes()


def test_a_header_that_names_another_plan_is_seen(tiny: Tiny, unit_direction: Unit, tmp_path: Path) -> None:
    out = edited(tiny(), tmp_path / "out", unit_direction(32))
    data = (out / "model.safetensors").read_bytes()
    edit = edit_digest(load_edit(out / PLAN)).encode()
    (out / "model.safetensors").write_bytes(data.replace(edit, b"0" * 64))
    with pytest.raises(CheckError, match="names another plan"):
        verify(open_folder(out), None)


def test_licence_files_tokenizer_template_and_generation_config_are_the_bases_byte_for_byte(
    tiny: Tiny, unit_direction: Unit, tmp_path: Path
) -> None:
    model = tiny()
    for name in ("LICENSE", "NOTICE.txt", "USE_POLICY.md", "chat_template.jinja"):
        (model / name).write_bytes(TEXT.encode())
    (model / "README.md").write_text("---\nlicense: other\nlicense_name: mine\nlicense_link: LICENSE\nbase_model: org/older\n---\n# M\n")
    (model / "SHA256SUMS").write_text("of the base\n")
    out = edited(model, tmp_path / "out", unit_direction(32))
    same = {path.name for path in model.iterdir()} - {"README.md", "SHA256SUMS", "model.safetensors"}
    assert {"LICENSE", "USE_POLICY.md", "tokenizer.json", "generation_config.json", "chat_template.jinja"} <= same
    assert all((out / name).read_bytes() == (model / name).read_bytes() for name in same)
    assert not (out / "SHA256SUMS").exists()
    assert json.loads((out / "abliteration.json").read_text())["licence"] == {
        "ids": ["other"], "name": "mine", "link": "LICENSE", "files": ["LICENSE", "NOTICE.txt", "USE_POLICY.md"], "bases": ["org/older"],
    }  # fmt: skip
    assert verify(open_folder(out), open_folder(model))[1] > 0


@pytest.mark.parametrize(
    "card", [None, "", "no front matter", "---\nlicense: [\n---\n", "---\n- a list\n---\n", "---\nlicense: 3\n---\n", b"\xff\xfe"]
)
def test_a_card_that_states_nothing_gives_no_licence(tmp_path: Path, card: str | bytes | None) -> None:
    if card is not None:
        (tmp_path / "README.md").write_bytes(card if isinstance(card, bytes) else card.encode())
    assert stated_licence(tmp_path).document() == {"ids": [], "name": None, "link": None, "files": [], "bases": []}


def test_several_licences_and_bases_are_all_kept(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: [MIT, llama3.1]\nbase_model:\n- a/b\n- c/d\n---\n")
    found = stated_licence(tmp_path).document()
    assert (found["ids"], found["bases"]) == (["mit", "llama3.1"], ["a/b", "c/d"])
