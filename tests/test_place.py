"""Results are complete or absent, and go into the given folder even if it contains links."""

from __future__ import annotations

from pathlib import Path

import pytest

from abliterate.errors import InputError
from abliterate.files import write_whole
from abliterate.replies.transcripts import Transcript, append
from abliterate.runs.folder import RunFolder


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A file of the user, to which a stranger's folder has links."""
    (tmp_path / "mine").write_text("mine")
    return tmp_path / "mine"


@pytest.mark.parametrize("linked", ["report.json", ".report.json.partial"])
def test_a_link_is_replaced_and_what_it_leads_to_stays(linked: str, mine: Path, tmp_path: Path) -> None:
    (tmp_path / linked).symlink_to(mine)
    write_whole(b"{}", tmp_path / "report.json")
    assert mine.read_text() == "mine"
    assert (tmp_path / "report.json").read_bytes() == b"{}" and not (tmp_path / "report.json").is_symlink()


def test_what_a_killed_process_left_is_written_over(tmp_path: Path) -> None:
    (tmp_path / ".a.partial").write_bytes(b"half of what wa")
    write_whole(b"whole", tmp_path / "a")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("a", b"whole")]


def test_a_stage_is_not_saved_through_a_link(mine: Path, tmp_path: Path) -> None:
    (tmp_path / ".partial-made.txt").symlink_to(mine)
    RunFolder(tmp_path).stage("make", "made.txt", lambda: "made", lambda text, path: path.write_text(text) and None, Path.read_text)
    assert (mine.read_text(), (tmp_path / "made.txt").read_text()) == ("mine", "made")


def test_transcripts_are_not_added_to_through_a_link(mine: Path, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").symlink_to(mine)
    with pytest.raises(InputError, match="is a link"):
        append(tmp_path / "t.jsonl", [Transcript("s", "1", "Who?", "me")])
    assert mine.read_text() == "mine"
