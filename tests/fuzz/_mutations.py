"""Damage to files: bytes flipped, lines lost, doubled and exchanged, ends cut off, numbers made absurd."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

#: Numbers that no reader may take for a measurement, and words that are none.
ABSURD = (
    *("1e24", "-1e24", "nan", "inf", "-inf", "-1", "0", "1e-300", "99999", "2147483648", "9223372036854775808", "-0.0"),
    *("1" * 400, "abc", "", "1,5", "0x10", "1_000", "١٢", "3.0.0", "--1", "true", "null"),
)
_NUMBER = re.compile(rb"[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?")
Mutation = Callable[[bytes, np.random.Generator], bytes]


def _flip_bits(content: bytes, chance: np.random.Generator) -> bytes:
    data = bytearray(content)
    for _ in range(int(chance.integers(1, 9))):
        data[int(chance.integers(len(data)))] ^= 1 << int(chance.integers(8))
    return bytes(data)


def _other_bytes(content: bytes, chance: np.random.Generator) -> bytes:
    data, start = bytearray(content), int(chance.integers(len(content)))
    for place in range(start, min(start + int(chance.integers(1, 9)), len(data))):
        data[place] = int(chance.integers(256))
    return bytes(data)


def _cut_off(content: bytes, chance: np.random.Generator) -> bytes:
    return content[: int(chance.integers(len(content)))]


def _remove(content: bytes, chance: np.random.Generator) -> bytes:
    start = int(chance.integers(len(content)))
    return content[:start] + content[start + int(chance.integers(1, 1 + max(1, len(content) // 4))) :]


def _insert(content: bytes, chance: np.random.Generator) -> bytes:
    start = int(chance.integers(len(content) + 1))
    return content[:start] + chance.bytes(int(chance.integers(1, 17))) + content[start:]


def _double_part(content: bytes, chance: np.random.Generator) -> bytes:
    start, stop = sorted(int(n) for n in chance.integers(len(content) + 1, size=2))
    return content[:stop] + content[start:stop] + content[stop:]


def _lines(change: Callable[[list[bytes], np.random.Generator], None]) -> Mutation:
    def mutate(content: bytes, chance: np.random.Generator) -> bytes:
        lines = content.splitlines(keepends=True)
        if lines:
            change(lines, chance)
        return b"".join(lines)

    return mutate


def _lose_line(lines: list[bytes], chance: np.random.Generator) -> None:
    del lines[int(chance.integers(len(lines)))]


def _double_line(lines: list[bytes], chance: np.random.Generator) -> None:
    place = int(chance.integers(len(lines)))
    lines.insert(place, lines[place])


def _exchange_lines(lines: list[bytes], chance: np.random.Generator) -> None:
    a, b = (int(n) for n in chance.integers(len(lines), size=2))
    lines[a], lines[b] = lines[b], lines[a]


def _lose_word(lines: list[bytes], chance: np.random.Generator) -> None:
    place = int(chance.integers(len(lines)))
    words = lines[place].split(b" ")
    del words[int(chance.integers(len(words)))]
    lines[place] = b" ".join(words)


def _absurd_number(content: bytes, chance: np.random.Generator) -> bytes:
    found = list(_NUMBER.finditer(content))
    if not found:
        return content
    one = found[int(chance.integers(len(found)))]
    return content[: one.start()] + ABSURD[int(chance.integers(len(ABSURD)))].encode() + content[one.end() :]


def _byte_order_mark(content: bytes, chance: np.random.Generator) -> bytes:
    return b"\xef\xbb\xbf" + content


def _utf16(content: bytes, chance: np.random.Generator) -> bytes:
    try:
        return content.decode().encode("utf-16")
    except UnicodeDecodeError:
        return content


def _line_ends(content: bytes, chance: np.random.Generator) -> bytes:
    return content.replace(b"\n", b"\r\n" if chance.random() < 0.5 else b"\r")


#: Damage to any file.
BYTES: tuple[Mutation, ...] = (_flip_bits, _other_bytes, _cut_off, _remove, _insert, _double_part)
#: Damage to text.
TEXT: tuple[Mutation, ...] = (
    *(_absurd_number,) * 6,
    *(_lines(change) for change in (_lose_line, _double_line, _exchange_lines, _lose_word)),
    *(_byte_order_mark, _utf16, _line_ends),
)


def mutated(content: bytes, seed: int, *, text: bool) -> bytes:
    """Damage a file's content, once or a few times, in ways that depend on `seed`."""
    chance = np.random.default_rng(seed)
    kinds = BYTES + TEXT if text else BYTES
    for _ in range(1 + int(chance.integers(3))):
        if content:
            content = kinds[int(chance.integers(len(kinds)))](content, chance)
    return content
