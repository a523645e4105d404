"""Settings are written as TOML, and read again as they were."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faket_aug.formats._settings_file import _toml, load_table, write_toml

PLAIN = st.one_of(st.booleans(), st.integers(-(2**60), 2**60), st.floats(allow_nan=False), st.text(max_size=8))
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(VALUES)
def test_what_is_written_is_read(value: Any) -> None:
    """Every value of JSON's types comes back, of the same type."""
    found = tomllib.loads(f"value = {_toml(value)}\n")["value"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("value", [1e300, 1e-07, 5e-324, 1e16, -0.0, math.inf, -math.inf, 0.1])
def test_numbers(value: float) -> None:
    """Numbers with exponents, and those that are not finite, have TOML's form."""
    found = tomllib.loads(f"value = {_toml(value)}")["value"]
    assert isinstance(found, float)
    assert math.copysign(1, found) == math.copysign(1, value)
    assert found == value


def test_a_file(tmp_path: Path) -> None:
    """A comment comes first; what is None is left out."""
    content = {"steps": 3, "watch": None, "ctf": {"defocus": 3.0}, "a b": ["x", "y"]}
    write_toml(tmp_path / "settings.toml", content, head="how to use it")
    assert (tmp_path / "settings.toml").read_text().splitlines()[0] == "# how to use it"
    found = load_table(tmp_path / "settings.toml", "settings")
    assert found == {"steps": 3, "ctf": {"defocus": 3.0}, "a b": ["x", "y"]}
