"""Numbers as decimal text, a whole column at a time.

A text is laid into words of 4 bytes, so that a table of all groups of digits writes it; bytes that a number does not
need are NUL, and whoever has put all together takes them out. What comes out is what a JSON writer makes of
`short_float`, in a fifth of the time.
"""

from __future__ import annotations

import struct
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Words = NDArray[np.uint32]  # [numbers, words]

_POWERS = np.array([10.0**n for n in range(23)])  # exact
_LOWEST, _HIGHEST = -5, 8  # exponents of ten that the tables write; other numbers, but for 0, are written singly
_FEW = 24  # numbers that are written sooner one by one than by twenty calls of numpy
_DIGITS = ("%.6g", "%.7g", "%.8g", "%.9g")
_NORMAL, _FEW_DIGITS = 2.0**-126, tuple(f"%.{n}g" for n in range(1, 10))  # below, a float32 has fewer than 6 digits
TIME_WORDS = OFFSET_WORDS = 4
PARTITION_WORDS = 2
_float = struct.Struct("f")
_encode = msgspec.json.Encoder().encode


def short_float(value: float) -> float:
    """Of the doubles that become the same float32 as `value`, that of 6, 7, 8 or 9 digits; the first that does.

    JSON writers print doubles: a float32 widened as it is would print 17 digits, most of them noise. 9 significant
    digits always suffice. What is not finite stays.

    Args:
        value: a float32, as a double.
    """
    short = value
    for digits in _DIGITS if abs(value) >= _NORMAL else _FEW_DIGITS:
        short = float(digits % value)
        if _float.unpack(_float.pack(short))[0] == value:
            break
    return short


def float_words(values: Float32) -> Words:
    """The JSON text of finite numbers [numbers]. How many words there are depends on the numbers."""
    if len(values) <= _FEW:
        texts = list(map(_encode, map(short_float, values.tolist())))
        return _laid_out(texts, -(-max(map(len, texts), default=1) // 4))
    size = np.abs(values)
    exponent = _TEN_OF_TWO[values.view(np.uint32) >> 23 & 255]
    wide = size.astype(np.float64)
    exponent += wide >= _POWERS_FROM_LOWEST[exponent]  # of the two that a power of two lies between
    odd = np.empty(0, dtype=np.int64)
    if exponent.min(initial=1) < _LOWEST or exponent.max(initial=1) > _HIGHEST:
        strange = (exponent < _LOWEST) | (exponent > _HIGHEST)
        wide[strange], exponent[strange] = 0.0, 1
        odd = np.flatnonzero(strange & (size > 0))
    up = _POWERS[_HIGHEST - exponent]
    number = _shortest(size, wide * up, up)  # value * up, whole
    whole = np.floor(number / up)
    part_digits = _HIGHEST - int(exponent.min(initial=1))  # behind the point
    whole_words, part_words = _words_for(float(whole.max(initial=0))), 2 + (part_digits > 7) + (part_digits > 11)
    odd_texts = list(map(_encode, map(short_float, values[odd].tolist()))) if len(odd) else []
    part_words = max(part_words, -(-max(map(len, odd_texts), default=0) // 4) - whole_words)
    words = np.empty((len(values), whole_words + part_words), dtype=np.uint32)
    _write_whole(words[:, :whole_words], np.signbit(values), whole)
    part = (number - whole * up) * _POWERS[exponent + (4 * part_words - 1 - _HIGHEST)]
    _write_part(words[:, whole_words:], part)
    if len(odd):
        words[odd] = _laid_out(odd_texts, words.shape[1])
    return words


def whole_words(numbers: NDArray[np.integer[Any]], count: int) -> Words:
    """The text of whole numbers [numbers] -> [numbers, count]; so many words hold 4 * `count` - 1 digits."""
    if len(numbers) <= _FEW:
        return _laid_out([b"%d" % number for number in numbers.tolist()], count)
    words = np.empty((len(numbers), count), dtype=np.uint32)
    _write_whole(words, numbers < 0, np.abs(numbers).astype(np.float64))
    return words


def _laid_out(texts: list[bytes], count: int) -> Words:
    """[texts, count]"""
    text = b"".join([text.ljust(4 * count, b"\0") for text in texts])
    return np.frombuffer(text, dtype=np.uint32).reshape(-1, count)


def _shortest(size: Float32, scaled: Float64, up: Float64) -> Float64:
    """`size` * `up`, rounded to 6 digits where that is still the same float32, else to 7, 8, or 9, which is whole.

    What is compared is what a reader of the text gets: `number` / `up`, rounded once.
    """
    number = np.rint(scaled)
    fewer, read = np.empty_like(scaled), np.empty_like(scaled)
    for unit in (10.0, 100.0, 1000.0):
        np.divide(scaled, unit, out=fewer)
        np.rint(fewer, out=fewer)
        fewer *= unit
        np.divide(fewer, up, out=read)
        np.copyto(number, fewer, where=read.astype(np.float32) == size)
    return number


def _words_for(highest: float) -> int:
    """How many words hold a whole number: 3 digits with the sign, then 4 each."""
    return 1 + (highest >= 1e3) + (highest >= 1e7)


def _write_whole(words: Words, negative: NDArray[np.bool_], number: Float64) -> None:
    """A sign, and whole numbers without leading zeros, into all of `words`."""
    last = words.shape[1] - 1
    unit = 10.0 ** (4 * last)
    group = _quotient(number, unit) if last else number
    words[:, 0] = (_SIGNED if last else _SIGNED_LAST).take(group.astype(np.intp) + 1000 * negative)
    begun = group > 0
    for column in range(1, last + 1):
        number = number - group * unit
        unit /= 1e4
        group = _quotient(number, unit) if column < last else number
        table = _LEADING if column < last else _LAST
        words[:, column] = table.take(group.astype(np.intp) + 10_000 * ~begun)
        begun |= group > 0


def _write_part(words: Words, number: Float64) -> None:
    """The point and the digits behind it, 3 + 4 + …, without trailing zeros, into all of `words`."""
    last = words.shape[1] - 1
    unit = 10.0 ** (4 * last)
    for column in range(last):
        group = _quotient(number, unit)
        number = number - group * unit
        index = group.astype(np.intp)
        index += (10_000 if column else 1000) * (number == 0)
        words[:, column] = (_TRAILING if column else _POINT).take(index)
        unit /= 1e4
    words[:, last] = _TRAILING[10_000:].take(number.astype(np.intp))  # there are 2 words at least


def _quotient(number: Float64, unit: float) -> Float64:
    """Whole numbers below 2**50, divided by a power of ten without a rest. Divisions are dear."""
    # In the middle between two whole numbers no rounding of the product passes one of them.
    group = number + 0.5
    group *= 1.0 / unit
    return np.floor(group, out=group)


def _digits(count: int) -> NDArray[np.uint8]:
    """All numbers of so many digits -> [10**count, count]"""
    return (np.arange(10**count)[:, np.newaxis] // 10 ** np.arange(count)[::-1] % 10).astype(np.uint8)


def _table(digits: NDArray[np.uint8], keep: NDArray[np.bool_], before: bytes = b"") -> NDArray[np.uint32]:
    """A word for each row: `before`, then its digits where they are kept."""
    text = np.where(keep, digits + ord("0"), 0).astype(np.uint8)
    start = np.broadcast_to(np.frombuffer(before, dtype=np.uint8), (len(text), len(before)))
    return np.concatenate((start, text), axis=1).view(np.uint32).ravel()


def _from_first(digits: NDArray[np.uint8], *, at_least_one: bool) -> NDArray[np.bool_]:
    """False at leading zeros."""
    keep = np.logical_or.accumulate(digits > 0, axis=1)
    keep[:, -1] |= at_least_one
    return keep


_THREE, _FOUR = _digits(3), _digits(4)
_ALL_THREE, _ALL_FOUR = np.ones(_THREE.shape, dtype=np.bool_), np.ones(_FOUR.shape, dtype=np.bool_)


def _signed(*, at_least_one: bool) -> NDArray[np.uint32]:
    keep = _from_first(_THREE, at_least_one=at_least_one)
    return np.concatenate([_table(_THREE, keep, sign) for sign in (b"\0", b"-")])


def _upto_last(digits: NDArray[np.uint8], *, at_least_one: bool) -> NDArray[np.bool_]:
    """False at trailing zeros."""
    return _from_first(digits[:, ::-1], at_least_one=at_least_one)[:, ::-1]


# The second half of each table is for where nothing came before (of the sign's: for a minus), or nothing comes after.
_SIGNED, _SIGNED_LAST = _signed(at_least_one=False), _signed(at_least_one=True)
_LEADING = np.concatenate((_table(_FOUR, _ALL_FOUR), _table(_FOUR, _from_first(_FOUR, at_least_one=False))))
_LAST = np.concatenate((_table(_FOUR, _ALL_FOUR), _table(_FOUR, _from_first(_FOUR, at_least_one=True))))
_TRAILING = np.concatenate((_table(_FOUR, _ALL_FOUR), _table(_FOUR, _upto_last(_FOUR, at_least_one=False))))
_POINT_KEEP = _upto_last(_THREE, at_least_one=False)
_POINT_KEEP[:, 0] = True
_POINT = np.concatenate((_table(_THREE, _ALL_THREE, b"."), _table(_THREE, _POINT_KEEP, b".")))

# A float32's exponent of two -> the lower exponent of ten that it may have, and the power of ten where the next begins.
_TEN_OF_TWO = np.floor((np.arange(256) - 127) * np.log10(2.0)).astype(np.int64)
_POWERS_FROM_LOWEST = np.array([10.0 ** (n + 1) for n in [*range(39), *range(-39, 0)]])  # negative: from the end
