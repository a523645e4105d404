"""What the tests of the commands share: a run that has to end well, and one that has to be refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from _helpers import outcome


@pytest.fixture
def subcommand() -> tuple[str, ...]:
    """What `command` and `refused` run, before their arguments; the tests of one command name it."""
    return ()


@pytest.fixture
def command(
    subcommand: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Run `faket-aug` with arguments; it has to end well, and its output is returned."""

    def run(*arguments: object) -> str:
        code, output, errors = outcome([*subcommand, *arguments], monkeypatch, capsys)
        assert code == 0, errors
        return output

    return run


@pytest.fixture
def refused(
    subcommand: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Run `faket-aug` with arguments; it has to end with one line that says what is wrong, which is returned."""

    def run(*arguments: object) -> str:
        code, output, errors = outcome([*subcommand, *arguments], monkeypatch, capsys)
        lines = errors.strip().splitlines()
        assert code == 1
        assert output == ""
        assert lines[-1].startswith("faket-aug: error: ")
        assert "Traceback" not in errors
        return lines[-1]

    return run
