"""Settings: names, types, defaults and help of the library's own fields, and reading their values."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from faket_aug._checks import FileFormatError
from faket_aug._reading import expected, explained, names_files, read_setting, read_table, read_value
from faket_aug._settings import (
    IsPath,
    Part,
    Reads,
    as_json,
    from_library,
    parameter_help,
    setting_of,
    settings_of,
)
from faket_aug.formats._settings_file import load_table

COLOURS = ("red", "blue")
Range = float | tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Lens:
    """A lens.

    Parameters
    ----------
    focus
        mm, from the lens
        to the image.
    width, height
        mm.

    Raises
    ------
    ValueError
        For a negative width.
    """

    focus: float
    width: Range = 2.5
    height: float = 1.0
    stops: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        if self.height < 0:
            raise ValueError(f"expected `height` of 0 or more, got {self.height}")


@dataclass(frozen=True, kw_only=True)
class Camera:
    """A camera; its lens may be missing."""

    lens: Lens | None = None
    names: Sequence[str] = ("a",)
    made: dict[str, int] = field(default_factory=lambda: {"here": 1})


def paint(surface: Any, *, colour: str = "red", layers: int | None = None, **more: Any) -> None:
    """Paint something.

    Parameters
    ----------
    surface
        What.
    colour
        Of the paint.
    layers
        How many; as needed by default.
    **more
        Passed on.
    """


# --- from fields to settings ------------------------------------------------------------------------------------------


def test_settings_are_the_fields_own() -> None:
    """Types and defaults are those of the class, the help is its docstring's; names that share a text have it all."""
    found = settings_of(Lens)
    assert list(found) == ["focus", "width", "height", "stops"]
    assert found["focus"].default is MISSING
    assert (found["width"].default, found["height"].default) == (2.5, 1.0)
    assert found["focus"].help == "mm, from the lens to the image."
    assert found["width"].help == found["height"].help == "mm."
    assert found["focus"].owners == (("Lens", "focus"),)
    assert settings_of(Camera)["made"].default == {"here": 1}


def test_settings_of_a_function() -> None:
    found = settings_of(paint, without=["surface"], choices={"colour": COLOURS})
    assert list(found) == ["colour", "layers"]
    assert explained(found["colour"]) == "Of the paint; one of red, blue; default: red."
    assert explained(found["layers"]) == "How many; as needed by default."
    assert parameter_help(paint)["more"] == "Passed on."
    assert setting_of(paint, "layers", name="coats", note="Or none.").help == "How many; as needed by default. Or none."
    assert setting_of(paint, "colour", also=[(Lens, "width")]).owners == (("paint", "colour"), ("Lens", "width"))
    with pytest.raises(KeyError):
        setting_of(paint, "nothing")


def test_a_field_takes_a_default_from_the_library() -> None:
    """The default and the help are the parameter's; another default there is another one here."""

    @dataclass
    class Wall:
        colour: str = from_library(paint, "colour")

    assert Wall().colour == "red"
    assert settings_of(Wall)["colour"].help == "Of the paint."
    assert settings_of(Wall)["colour"].owners == (("paint", "colour"),)
    with pytest.raises(AssertionError, match="no default of focus"):
        from_library(Lens, "focus")


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hint", "value", "found"),
    [
        (float, "2.5", 2.5),
        (float, 2, 2.0),
        (int, "3", 3),
        (int, 3.0, 3),
        (int, "1e3", 1000),
        (bool, "true", True),
        (bool, False, False),
        (str, "a,b", "a,b"),
        (Path, "a", Path("a")),
        (int | None, "none", None),
        (int | None, None, None),
        (str | None, "none", None),
        (float | Literal["auto"], "auto", "auto"),
        (Range, "1,2", (1.0, 2.0)),
        (Range, [1, 2], (1.0, 2.0)),
        (Range, "1", 1.0),
        (Sequence[int], "1, 6,11", (1, 6, 11)),
        (Sequence[int], 5, (5,)),
        (Sequence[str], "a,b", ("a", "b")),
        (tuple[int, int], "1,2", (1, 2)),
        (tuple[tuple[float, float], ...], "0.1:1,0.2:0.5", ((0.1, 1.0), (0.2, 0.5))),
        (tuple[tuple[float, float], ...], [[0.1, 1]], ((0.1, 1.0),)),
        (Mapping[str, int], "a=1,b=2", {"a": 1, "b": 2}),
        (Mapping[int, str], {"1": "a"}, {1: "a"}),
        (Mapping[str, Range], "a.b=1,2,c=3", {"a.b": (1.0, 2.0), "c": 3.0}),
        (Lens, "focus=50,width=1,2", Lens(focus=50.0, width=(1.0, 2.0))),
        (Lens | None, {"focus": 50, "stops": [[1, 2]]}, Lens(focus=50.0, stops=((1.0, 2.0),))),
        (Camera, "lens.focus=3,lens.height=2,names=x", Camera(lens=Lens(focus=3.0, height=2.0), names=("x",))),
        (int | Mapping[str, int], "a=1", {"a": 1}),
        (int | Mapping[str, int], "4", 4),
        (Annotated[float, Reads("a share", lambda value: float(value) / 100)], "50", 0.5),
    ],
)
def test_values(hint: Any, value: Any, found: Any) -> None:
    """Text and the types of files give the same values, of the type that the library has."""
    read = read_value(hint, value, "`x`")
    assert read == found
    assert type(read) is type(found)


@pytest.mark.parametrize(
    ("hint", "value", "message"),
    [
        (float, "many", "expected `x` to be a number, got 'many'"),
        (float, True, "expected `x` to be a number, got True"),
        (int, "1.5", "expected `x` to be a whole number, got '1.5'"),
        (int, float("inf"), "expected `x` to be a whole number, got inf"),
        (bool, 1, "expected `x` to be true or false, got 1"),
        (str, 1, "expected `x` to be a word, got 1"),
        (Range, "1,2,3", "one number, or two with a comma between (lowest, highest), got '1,2,3'"),
        (tuple[int, int], "1", "expected `x` to be 2 whole numbers with commas between, got '1'"),
        (Sequence[int], "1,a", "expected `x` to be whole numbers with commas between, got '1,a'"),
        (Mapping[str, int], "a", "settings by name, as name=value with commas between, got 'a'"),
        (Mapping[str, int], "a=b", "expected `x.a` to be a whole number, got 'b'"),
        (Mapping[str, Lens], "a.focus=1,a=2", "settings by name, as name=value with commas between"),
        (Lens, {"focus": "far"}, "expected `x.focus` to be a number, got 'far'"),
        (Lens, {"fokus": 1}, "expected settings of `x` to be focus, width, height, stops, got fokus"),
        (Lens, {"height": 1}, "expected `x` with focus, got height"),
        (Lens | None, "focus=1,height=-1", "`x`: expected `height` of 0 or more, got -1.0"),
        (Camera, {"lens": {"focus": []}}, "expected `x.lens.focus` to be a number, got []"),
        (Annotated[int, Reads("a share", lambda value: int(value))], "b", "expected `x` to be a share, got 'b'"),
    ],
)
def test_what_does_not_fit(hint: Any, value: Any, message: str) -> None:
    """One sentence says what was expected, where, and what there was."""
    with pytest.raises(ValueError) as error:
        read_value(hint, value, "`x`")
    assert message in str(error.value)


def test_names_of_a_table_by_number() -> None:
    """An epoch that is no whole number is told as such."""
    hint = Mapping[int, float]
    assert read_value(hint, "0=1,20=2.5", "weight") == {0: 1.0, 20: 2.5}
    with pytest.raises(ValueError, match="expected a name within weight to be a whole number, got 'x'"):
        read_value(hint, "x=1", "weight")
    with pytest.raises(ValueError, match="expected weight to be settings by name, as name=value"):
        read_value(hint, "2,x=1", "weight")


def test_options_are_named_as_they_are_typed() -> None:
    with pytest.raises(ValueError, match=r"^expected --lens focus to be a number, got 'far'$"):
        read_value(Lens, "focus=far", "--lens")


def test_choices_are_listed() -> None:
    """The choices of the help are those that are checked."""
    colour = settings_of(paint, choices={"colour": COLOURS})["colour"]
    assert read_setting(colour, "blue", "--colour") == "blue"
    with pytest.raises(ValueError, match=r"^expected --colour to be one of 'red', 'blue', got 'green'$"):
        read_setting(colour, "green", "--colour")


def test_paths_count_from_a_folder() -> None:
    """Paths are brought to the place they count from, words that stand for one are not; commas belong to names."""
    path = Annotated[str, IsPath(words=("random",))]
    places = lambda entry: f"/set/{entry}"  # noqa: E731
    assert read_value(path, "a.pth", "`x`", places) == "/set/a.pth"
    assert read_value(path, "random", "`x`", places) == "random"
    assert read_value(Sequence[path], "a,b", "`x`", places) == ("/set/a,b",)
    assert read_value(Sequence[path], ["a", "random"], "`x`", places) == ("/set/a", "random")
    assert names_files(Sequence[path] | None)
    assert not names_files(Sequence[str])
    assert expected(Sequence[path]) == "paths"


def test_tables_are_strict_and_know_old_names() -> None:
    settings = settings_of(Lens)
    part = Annotated[dict[str, Any], Part(settings, {"depth": "focus"})]
    with pytest.warns(FutureWarning, match="`depth` is called `focus` now"):
        assert read_value(part, {"depth": 3, "width": None}, "`x`") == {"focus": 3.0}
    with pytest.raises(ValueError, match="expected settings to be focus, .*, got fokus"):
        read_table(settings, {"fokus": 1}, "")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_table(settings, {"focus": 1}, "") == {"focus": 1.0}


def test_values_go_back_to_files() -> None:
    """What was read is written as JSON types, and read as the same."""
    camera = Camera(lens=Lens(focus=3.0, stops=((1.0, 2.0),)))
    written = json.loads(json.dumps(as_json(camera)))
    assert written == {
        "lens": {"focus": 3.0, "width": 2.5, "height": 1.0, "stops": [[1.0, 2.0]]},
        "names": ["a"],
        "made": {"here": 1},
    }
    assert read_value(Camera, written, "`x`") == camera


def test_files(tmp_path: Path) -> None:
    """TOML and JSON are told by the file's name; what is neither is refused with its name."""
    (tmp_path / "a.toml").write_text("focus = 3\n[lens]\nwidth = [1, 2]\n")
    (tmp_path / "a.json").write_text('{"focus": 3, "lens": {"width": [1, 2]}}')
    assert load_table(tmp_path / "a.toml", "settings") == load_table(tmp_path / "a.json", "settings")
    (tmp_path / "settings").write_text("focus = 3")
    assert load_table(tmp_path / "settings", "settings", usual="toml") == {"focus": 3}
    with pytest.raises(FileFormatError, match=r"settings: expected settings \(JSON\), got"):
        load_table(tmp_path / "settings", "settings")
    (tmp_path / "a.toml").write_text("focus = ")
    with pytest.raises(FileFormatError, match=r"a.toml: expected settings \(TOML\), got"):
        load_table(tmp_path / "a.toml", "settings")
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(FileFormatError, match=r"a.json: expected settings \(a JSON object\), got '\[1\]'"):
        load_table(tmp_path / "a.json", "settings")
    for name, text in {
        "a.json": '{"focus": ' + "1" * 400 + "}",
        "a.toml": "focus = " + "1" * 400,
        "b.json": '{"focus": ' + "[" * 100_000,
        "b.toml": "focus = " + "[" * 100_000,
    }.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(FileFormatError, match=rf"{name}: expected settings \((JSON|TOML)\), got other text"):
            load_table(tmp_path / name, "settings")
    (tmp_path / "a.toml").write_bytes("focus = 3".encode("utf-16"))
    with pytest.raises(FileFormatError, match=r"a.toml: expected settings as text in UTF-8"):
        load_table(tmp_path / "a.toml", "settings")
    (tmp_path / "a.toml").write_text("\ufefffocus = 3")
    assert load_table(tmp_path / "a.toml", "settings") == {"focus": 3}, "a byte order mark does no harm"
    with pytest.raises(FileNotFoundError, match="expected a lens, found none at"):
        load_table(tmp_path / "none.json", "a lens")
