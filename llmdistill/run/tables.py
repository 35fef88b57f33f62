"""Tables that are too large to be held in memory whole, piece by piece."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from llmdistill.errors import DamagedError
from llmdistill.run.files import replacing

GROUP_ROWS = 65_536
"""Rows of a row group: what is held in memory while a file is written or read piece by piece."""


_THREADS = 4
"""Reading, packing and syncing files goes on side by side."""

Result = TypeVar("Result")


@contextmanager
def appending(path: Path, schema: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    """Write a Parquet file atomically, table by table; gives the function that adds one.

    The bytes depend on the rows, not on how they were cut into tables.
    """
    waiting: list[pa.Table] = [schema.empty_table()]
    with replacing(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:

        def append(table: pa.Table) -> None:
            waiting[:] = [pa.concat_tables([*waiting, table])]
            while waiting[0].num_rows >= GROUP_ROWS:
                writer.write_table(waiting[0].slice(0, GROUP_ROWS).combine_chunks())
                waiting[:] = [waiting[0].slice(GROUP_ROWS)]

        yield append
        if waiting[0].num_rows:  # `datasets` refuses a file with a row group of no rows
            writer.write_table(waiting[0].combine_chunks())


def read_columns(path: Path, columns: list[str]) -> Iterator[pa.Table]:
    """Some columns of a Parquet file, a row group at a time; a torn file is a `DamagedError`."""
    try:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                yield file.read_row_group(group, columns=columns)
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException) as error:
        advice = "remove the stage's folder and run the same command again"
        raise DamagedError(f"not readable as Parquet ({error})", where=path, do=advice) from error


def in_threads(work: Callable[..., Result], arguments: Iterable[tuple[Any, ...]]) -> Iterator[Result]:
    """What `work` gives for each of the arguments, in their order; a few are worked on at once."""
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(_THREADS) as pool:
        for given in arguments:
            waiting.append(pool.submit(work, *given))
            if len(waiting) > _THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@contextmanager
def reading(paths: Sequence[Path]) -> Iterator[ds.Dataset | None]:
    """The files as one dataset, None when there are none; a torn one is a `DamagedError`."""
    try:
        # One file's schema holds for all: they are the parts of one stage.
        yield ds.dataset([str(path) for path in paths], format="parquet") if paths else None
    except (OSError, KeyError, pa.ArrowException) as error:
        names = ", ".join(path.name for path in paths[:3])
        advice = "remove the stage's folder and run the pipeline again"
        message = f"{names} cannot be read as Parquet ({error})"
        raise DamagedError(message, where=paths[0].parent, do=advice) from error
