"""Prepare this project's docstrings for griffe, which makes the API reference from them.

Two habits of theirs are legal in NumPy's style and not understood by griffe: a `Returns` section that begins with prose
(griffe takes its first line for a type), and two parameters that share an entry (griffe gives both the first one's type
and default).
"""

from __future__ import annotations

import re

import griffe

_SECTION = re.compile(r"^(?P<title>\w[\w ]*)\n-{3,}\n(?P<body>.*?)(?=^\w[\w ]*\n-{3,}\n|\Z)", re.MULTILINE | re.DOTALL)
_ENTRY = re.compile(r"^(?P<names>\*{0,2}\w+(?:, \w+)+)\n(?P<text>(?:(?: +.*)?\n)*)", re.MULTILINE)


class NumpyDocstrings(griffe.Extension):
    """Rewrite docstrings before they are parsed; the sources stay as they are."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring is None:
            return
        returns = str(obj.returns) if isinstance(obj, griffe.Function) and obj.returns is not None else None
        obj.docstring.value = rewritten(obj.docstring.value, returns)


def rewritten(text: str, returns: str | None) -> str:
    """Name the type before the prose of `Returns`, and give each parameter an entry of its own."""

    def section(found: re.Match[str]) -> str:
        title, body = found["title"], found["body"]
        if title == "Parameters":
            body = _ENTRY.sub(_apart, body if body.endswith("\n") else body + "\n")
        elif title == "Returns" and returns is not None:
            body = f"{returns}\n" + "".join(f"    {line}\n" if line else "\n" for line in body.strip().split("\n"))
            body += "\n"
        return f"{title}\n{'-' * len(title)}\n{body}"

    return _SECTION.sub(section, text)


def _apart(found: re.Match[str]) -> str:
    return "".join(f"{name}\n{found['text']}" for name in found["names"].split(", "))
