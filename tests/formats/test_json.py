"""JSON files with a checksum: the same content comes back, damage does not pass, older files are read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faket_aug import FileFormatError
from faket_aug.formats._json import read_json, seal, unseal, write_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
CONTENT = st.dictionaries(st.text(max_size=5).filter(lambda name: name != "checksum"), VALUES, max_size=4)


def _unsealed(text: str, since: int | None = None) -> object:
    return unseal(text, source="a.json", what="a test", since=since)


@given(CONTENT)
def test_round_trip(content: dict[str, object]) -> None:
    """What is sealed comes back, with or without indentation."""
    assert _unsealed(seal(content)) == content
    assert _unsealed(seal(content, indent=None)) == content


@given(st.integers(0, 10**6), st.integers(0, 7))
def test_flipped_bits_are_noticed(place: int, bit: int) -> None:
    """A flipped bit gives the same content or an error, never another content."""
    content = {"format": 2, "numbers": [1.5, -2.25, 3e-9], "name": "TS_1", "inner": {"a": True, "b": None}}
    data = bytearray(seal(content).encode())
    data[place % len(data)] ^= 1 << bit
    try:
        found = _unsealed(data.decode(), since=2)
    except (FileFormatError, UnicodeDecodeError):
        return
    assert found == content


def test_without_checksum() -> None:
    """A file of a version without checksums is read; of a later one it is refused, unless it says `null`."""
    assert _unsealed('{"format": 1, "a": 2}', since=2) == {"format": 1, "a": 2}
    assert _unsealed('{"format": 2, "a": 2, "checksum": null}', since=2) == {"format": 2, "a": 2}
    with pytest.raises(FileFormatError, match=r"a.json: expected a test with a `checksum`, got none"):
        _unsealed('{"format": 2, "a": 2}', since=2)


@pytest.mark.parametrize(
    "text", ["", "[1]", '"a"', "{", '{"a": ' + "[" * 100_000, '{"a": ' + "1" * 400 + "}", "\x00", '{"a": 1} b']
)
def test_other_text(text: str) -> None:
    """What is no JSON object is refused in one sentence: also deep nesting and numbers of hundreds of digits."""
    with pytest.raises(FileFormatError, match=r"a.json: expected a test"):
        _unsealed(text)


def test_files(tmp_path: Path) -> None:
    """Files are whole, end with a line end, and are named by errors; a byte order mark does no harm."""
    path = tmp_path / "a.json"
    with pytest.raises(FileNotFoundError, match=r"expected a test, found none at .*a\.json"):
        read_json(path, what="a test")
    write_json(path, {"a": (1, 2)})
    assert path.read_text().endswith("}\n")
    assert read_json(path, what="a test") == {"a": [1, 2]}
    path.write_text("\ufeff" + json.dumps({"a": 1}))
    assert read_json(path, what="a test") == {"a": 1}
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FileFormatError, match=r"a\.json: expected a test as text in UTF-8"):
        read_json(path, what="a test")
    assert [one.name for one in tmp_path.iterdir()] == ["a.json"]
