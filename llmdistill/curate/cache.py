"""Rows computed from texts (vectors, MinHash signatures), kept by the content of each text.

    <folder>/<key>/<digest>.npy    one finished piece: (hash of the text, its row) for some texts

A piece appears by one atomic rename and is named by the SHA-256 of its bytes, so one that is torn or was changed by
something else is known, and computed again. A pool that grows, shrinks or is put in another order finds its rows here.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from llmdistill.config import Run
from llmdistill.run.executor import executor_of, opened
from llmdistill.run.failpoint import failpoint
from llmdistill.run.files import make_dir, sha256_of, write_bytes, writing
from llmdistill.run.progress import progress, say

PIECE_ROWS = 4096
ON_DISK_BYTES = 1 << 28
"""Results from this size on lie in a file instead of memory."""

HERE = Run()
"""Computes in this process."""

_KEY = np.dtype("S16")
_NAME_DIGITS = 32
_BLOCK_ROWS = 65_536

Compute = Callable[[list[str]], np.ndarray]
"""Gives one row for each text, [texts, width]; a text's row does not depend on the other texts."""


def cached(
    folder: Path,
    key: str,
    texts: Sequence[str],
    compute: Compute,
    *,
    what: str = "compute rows",
    piece_rows: int = PIECE_ROWS,
    run: Run = HERE,
) -> np.ndarray:
    """Rows of `texts`, [texts, width]: each distinct text is computed once, in this run or an earlier one.

    A process that dies loses at most the piece it was working on. Only one process may work in a folder at a time;
    the lock of the run directory sees to that.

    Args:
        folder: where the rows of every key are kept.
        key: names what the rows depend on beside the text: model, revision, settings.
        compute: is given texts in the order of their hashes, at most `piece_rows` at a time.
        what: name of the work, for the progress bar.
        run: where it is computed.

    Returns:
        An array of its own; a large one is mapped from a file that is deleted already.

    Raises:
        DiskError: a piece, or a large result, cannot be written.
    """
    if not len(texts):
        return np.zeros((0, 0), dtype=np.float32)
    place = make_dir(folder / key)
    for left_over in place.glob(".*.tmp"):
        left_over.unlink()
    hashes = hashes_of(texts)
    distinct, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    pieces = list(_intact_pieces(place))
    missing = np.flatnonzero(~_known(pieces, distinct))
    if len(missing):
        wanted = [missing[start : start + piece_rows] for start in range(0, len(missing), piece_rows)]
        items = ((key, compute, [texts[position] for position in first[some]]) for some in wanted)
        computed = contextlib.closing(executor_of(run).map(_rows_of, items))
        with computed as results, progress(what, len(distinct), len(distinct) - len(missing)) as bar:
            for number, rows in results:
                pieces.append(_write_piece(place, distinct[wanted[number]], rows))
                failpoint("cache.after_piece")
                bar.advance(len(rows))
    return _assembled(place, pieces, distinct, inverse)


def _rows_of(item: tuple[str, Compute, list[str]]) -> np.ndarray:
    """Rows of some texts. A worker keeps what computes them, which has loaded its model, for the next ones."""
    key, compute, texts = item
    return np.asarray(opened(key, lambda: compute)(texts))


def hashes_of(texts: Iterable[str]) -> np.ndarray:
    """128-bit content hash of each text, as bytes of 16."""
    digests = [hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest() for text in texts]
    return np.array(digests, dtype=_KEY)


def scratch(folder: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array to fill, of undefined content: in memory, or where it is large in a file that is deleted already.

    The file's blocks are claimed at once: a disk that fills up later would kill the process that writes to the map.
    """
    num_bytes = int(np.prod(shape)) * dtype.itemsize
    if num_bytes < ON_DISK_BYTES:
        return np.empty(shape, dtype=dtype)
    make_dir(folder)
    with writing(folder, num_bytes), tempfile.TemporaryFile(dir=folder) as file:
        file.truncate(num_bytes)
        if hasattr(os, "posix_fallocate"):  # macOS has none
            os.posix_fallocate(file.fileno(), 0, num_bytes)
        return np.memmap(file, dtype=dtype, mode="r+", shape=shape)


def _write_piece(place: Path, keys: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Write a finished piece; gives it as it is on disk."""
    if rows.ndim != 2 or len(rows) != len(keys):
        raise ValueError(f"{len(keys)} texts gave rows of shape {rows.shape}")
    piece = np.empty(len(keys), dtype=[("key", _KEY), ("row", rows.dtype, (rows.shape[1],))])
    piece["key"], piece["row"] = keys, rows
    packed = io.BytesIO()
    npy.write_array(packed, piece, allow_pickle=False)
    path = place / f"{hashlib.sha256(packed.getbuffer()).hexdigest()[:_NAME_DIGITS]}.npy"
    write_bytes(path, packed.getvalue())
    return _mapped(path)


def _mapped(path: Path) -> np.ndarray:
    piece: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return piece


def _intact_pieces(place: Path) -> Iterator[np.ndarray]:
    """Pieces in the order of their names; a damaged one is removed."""
    for path in sorted(place.glob("*.npy")):
        if sha256_of(path)[:_NAME_DIGITS] == path.stem:
            yield _mapped(path)
        else:
            say(f"{path} is damaged: what was in it is computed again")
            path.unlink()


def _known(pieces: list[np.ndarray], distinct: np.ndarray) -> np.ndarray:
    """[distinct] bool: whether some piece has the text."""
    known = np.zeros(len(distinct), dtype=bool)
    for piece in pieces:
        places, found = _places(distinct, piece["key"])
        known[places[found]] = True
    return known


def _places(distinct: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each key its place among the sorted `distinct`, and whether it is there at all."""
    places = np.minimum(np.searchsorted(distinct, keys), len(distinct) - 1)
    return places, distinct[places] == keys


def _assembled(place: Path, pieces: list[np.ndarray], distinct: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """The row of every text, copied out of the pieces block by block."""
    kind = pieces[-1].dtype["row"]
    result = scratch(place, (len(inverse), *kind.shape), kind.base)
    # Texts sorted by the distinct text they are: those of distinct text i stand at bounds[i]:bounds[i + 1].
    order = np.argsort(inverse, kind="stable")
    bounds = np.searchsorted(inverse[order], np.arange(len(distinct) + 1))
    for piece in pieces:
        for start in range(0, len(piece), _BLOCK_ROWS):
            block = piece[start : start + _BLOCK_ROWS]
            places, found = _places(distinct, block["key"])
            places = places[found]
            counts = bounds[places + 1] - bounds[places]
            offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            result[order[np.repeat(bounds[places], counts) + offsets]] = np.repeat(block["row"][found], counts, axis=0)
    return result
