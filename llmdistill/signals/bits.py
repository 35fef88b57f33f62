"""Token ids in as few bits as the vocabulary needs, the lowest bit first."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def id_bits(vocab_size: int) -> int:
    """Bits of one id."""
    return max(1, (vocab_size - 1).bit_length())


def whole_bytes(bits: Any) -> Any:
    """Bytes that so many bits, a number or an array, fill."""
    return (bits + 7) // 8


def pack(ids: Array, vocab_size: int) -> Array:
    """[rows, bytes] uint8 of [rows, ids], each row filled up to a whole byte."""
    octets = np.ascontiguousarray(ids, "<u4").view(np.uint8).reshape(*ids.shape, 4)
    bits = np.unpackbits(octets, axis=-1, bitorder="little", count=id_bits(vocab_size))
    return np.packbits(bits.reshape(len(ids), -1), axis=1, bitorder="little")


def words_of(data: bytes, shape: tuple[int, ...], strides: tuple[int, ...]) -> Array:
    """The eight bytes, as one int64, that begin at each byte of `data`, also at the last ones."""
    return np.ndarray(shape, "<i8", data + bytes(8), strides=strides)


def unpack(words: Array, starts: Array, vocab_size: int) -> Array:
    """The ids, int64.

    Args:
        words: int64, the eight bytes from the one in which each id begins.
        starts: the bit at which it begins.

    Raises:
        ValueError: an id is not in the vocabulary.
    """
    ids: Array = words >> (starts & 7) & ((1 << id_bits(vocab_size)) - 1)
    check_ids(ids, vocab_size)
    return ids


def check_ids(ids: Array, vocab_size: int) -> None:
    """Raise `ValueError` where an id is not in the vocabulary."""
    if ids.max(initial=0) >= vocab_size or ids.min(initial=0) < 0:
        wrong = ids[(ids >= vocab_size) | (ids < 0)][0]
        raise ValueError(f"token id {wrong} in a vocabulary of {vocab_size:,}")
