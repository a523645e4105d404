"""Logs of a training, as a CSV file or for TensorBoard."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from faket_aug._checks import FileFormatError
from faket_aug.formats._atomic import write_text
from faket_aug.formats._json import read_text

LOGS = ("csv", "tensorboard", "none")
COLUMNS = ("step", "loss", "validation")


class TrainingLog:
    """The log of a training: numbers by step.

    A resumed training goes on from its checkpoint. Later steps of the interrupted run are removed from the log.

    Parameters
    ----------
    folder
        The folder of the log.
    kind
        `"csv"`, `"tensorboard"` or `"none"`.
    steps
        How many steps the training has taken before.

    Raises
    ------
    ImportError
        For `"tensorboard"`, if TensorBoard is not installed.
    """

    def __init__(self, folder: Path, *, kind: str, steps: int) -> None:
        self.path = folder / "log.csv"
        self._rows: dict[int, dict[str, float]] = {}
        self._board: Any = None
        self._kind = kind
        if kind == "csv" and steps:
            self._rows = {step: row for step, row in read_log(self.path).items() if step <= steps}
        if kind == "tensorboard":
            self._board = _tensorboard(folder, steps)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()
        if self._board is not None:
            self._board.close()

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Add numbers to a step."""
        if self._board is not None:
            for name, value in numbers.items():
                self._board.add_scalar(name, value, step)
        elif self._kind == "csv":
            self._rows.setdefault(step, {}).update(numbers)

    def flush(self) -> None:
        """Write the numbers that were added."""
        if self._board is not None:
            self._board.flush()
        elif self._kind == "csv":
            more = dict.fromkeys(name for row in self._rows.values() for name in row if name not in COLUMNS)
            names = (*COLUMNS[1:], *more)
            text = StringIO()
            csv.writer(text, lineterminator="\n").writerow((COLUMNS[0], *names))
            for step, row in sorted(self._rows.items()):
                text.write(",".join([str(step), *(f"{row[n]:.9g}" if n in row else "" for n in names)]) + "\n")
            write_text(self.path, text.getvalue())


@contextmanager
def progress_bar(steps: int, *, done: int, shown: bool) -> Iterator[Callable[[int, float], None]]:
    """Show a progress bar on standard error; give a function that tells it a step and its loss.

    Parameters
    ----------
    steps, done
        The number of all steps, and of those that were taken before.
    shown
        Whether there is a bar. Without one, the function does nothing.
    """
    if not shown:
        yield lambda step, loss: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()),
        *(TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("first batch", total=steps, completed=done)
        yield lambda step, loss: bar.update(task, completed=step, description=f"loss {loss:.3f}")


def read_log(path: str | Path) -> dict[int, dict[str, float]]:
    """Read a `log.csv`: the numbers of each step, by column. A file that is missing gives none.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    FileFormatError
        If it is something else, or damaged; the message names it.
    """
    path, what = Path(path), "the log of a training"
    if not path.is_file():
        return {}
    try:
        rows = list(csv.reader(read_text(path, what=what).splitlines()))
        if not rows or tuple(rows[0][: len(COLUMNS)]) != COLUMNS or len(set(rows[0])) < len(rows[0]):
            raise ValueError(f"columns {','.join(rows[0]) if rows else 'none'}")
        return dict(_numbers(row, rows[0]) for row in rows[1:])
    except FileFormatError:
        raise
    except (ValueError, OverflowError, csv.Error) as error:
        raise FileFormatError(
            f"{path}: expected {what} with the columns {','.join(COLUMNS)}, got others ({str(error)[:200]}); move it "
            "away"
        ) from error


def _numbers(row: list[str], columns: list[str]) -> tuple[int, dict[str, float]]:
    if len(row) != len(columns):
        raise ValueError(f"{len(row)} columns in {','.join(row)}")
    return int(row[0]), {name: float(value) for name, value in zip(columns[1:], row[1:], strict=True) if value}


def _tensorboard(folder: Path, steps: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            'expected TensorBoard for `log="tensorboard"`, found none; pip install "faket_aug[tensorboard]", or set '
            '`log="csv"`'
        ) from error
    return SummaryWriter(folder, purge_step=steps + 1)
