"""The program `faket-aug`, which ends in order on a signal from its first moment: importing PyTorch takes seconds.

It lies beside the package, since the package itself imports PyTorch.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

#: What `faket_aug.cli` says of a signal, which is not there yet.
_LINE = "faket-aug: stopped by {}; run the same command again to finish\n"


def main() -> None:
    """Import and run the command line."""
    # What a shell lets its background jobs ignore stays ignored.
    numbers = [one for one in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(one) != signal.SIG_IGN]
    before = [signal.signal(number, _end) for number in numbers]
    from faket_aug.cli import main as run

    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)
    run()


def _end(number: int, _: FrameType | None) -> None:
    """End at once: nothing was begun, and an exception might be taken for one of a module that cannot be imported."""
    os.write(2, _LINE.format(signal.Signals(number).name).encode())
    os._exit(128 + number)
