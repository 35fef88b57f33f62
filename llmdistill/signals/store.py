"""Captured signals on disk: found by record id, checked whenever they are read.

    header.json         what they were made from (`Header`), and the shards there are, with their records
    part-00000.arrow    one row per record: Arrow IPC, not compressed, so that reading maps the file into memory

A shard appears by one atomic rename. Each row has a checksum over all of it, and a hash of the target ids, so that
another template or tokeniser, or another text, is found out and not trained on.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from llmdistill.errors import ChangedError, DamagedError, StageError
from llmdistill.run.failpoint import failpoint
from llmdistill.run.files import read_json, replacing, write_json
from llmdistill.signals.codec import Array, Rows, decode, encode, encode_all
from llmdistill.signals.header import AGAIN, Header

HEADER = "header.json"
_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("num_targets", pa.int32(), nullable=False),
        pa.field("targets", pa.uint64(), nullable=False),
        pa.field("crc32", pa.uint32(), nullable=False),
        pa.field("payload", pa.large_binary(), nullable=False),
    ]
)
_CHECKED_BYTES = 1 << 18
"""Of signals that are decoded at once when all are checked."""

_REDO = "remove this file and run `llmdistill signals` again"
_FRESH = "run `llmdistill signals --fresh`, or set the old values"


@dataclass(frozen=True, slots=True)
class Stored:
    """One record's signals: `payload` is what `codec.encode` gives for its targets."""

    record_id: str
    target_ids: Sequence[int]
    payload: bytes


def to_stored(header: Header, targets: Mapping[str, Sequence[int]], rows: Mapping[str, Rows]) -> list[Stored]:
    """Captured rows as they are stored.

    Args:
        targets: the target ids of each record, in the order of the shard.
        rows: what was captured of each.

    Raises:
        StageError: what was captured of a record are not distributions, one for each target.
    """
    for record_id, ids in targets.items():
        if len(rows[record_id].ids) != len(ids):
            what = f"{len(rows[record_id].ids):,} positions were captured for {len(ids):,} target tokens"
            raise StageError(what, where=f"record {record_id}", do="please report this")
    try:
        payloads = encode_all(header, [rows[record_id] for record_id in targets])
    except ValueError:
        for record_id in targets:
            _encode_one(header, record_id, rows[record_id])
        raise
    return [Stored(record_id, ids, data) for (record_id, ids), data in zip(targets.items(), payloads, strict=True)]


def _encode_one(header: Header, record_id: str, rows: Rows) -> None:
    try:
        encode(header, rows)
    except ValueError as error:
        advice = "the teacher's output is not finite? Try teacher.dtype: float32"
        raise StageError(f"not a distribution: {error}", where=f"record {record_id}", do=advice) from error


def shard_path(folder: Path, index: int) -> Path:
    """Where a shard is."""
    return folder / f"part-{index:05d}.arrow"


def shard_paths(folder: Path) -> list[Path]:
    """All shards in their order."""
    return sorted(path for path in folder.glob("part-*.arrow") if path.stem.removeprefix("part-").isdecimal())


def read_header(folder: Path) -> Header:
    """What a folder's signals were made from.

    Raises:
        DamagedError: the header is missing or not readable.
    """
    return _read_header(folder)[0]


def write_shard(folder: Path, index: int, header: Header, rows: Sequence[Stored]) -> Path:
    """Put a shard's name into the header file, then the shard in place.

    Raises:
        ChangedError: the folder holds signals that were captured otherwise.
    """
    shards, path = _listed(folder, header), shard_path(folder, index)
    shards[path.name] = {"records": len(rows), "first": rows[0].record_id if rows else ""}
    write_json(folder / HEADER, header.to_json() | {"shards": dict(sorted(shards.items()))})
    failpoint("signals.before_shard")
    batch = _batch(header, rows)
    with replacing(path, batch.nbytes) as temporary, pa.OSFile(str(temporary), "wb") as sink:
        with pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
    return path


def finished_shards(folder: Path, header: Header) -> dict[int, list[str]]:
    """The record ids of every shard that is whole, by its index; a damaged one is to be captured again.

    Raises:
        ChangedError: the folder holds signals that were captured otherwise.
    """
    _listed(folder, header)
    whole = {}
    for path in shard_paths(folder):
        try:
            shard = _Shard(path, header)
            for row in range(len(shard.record_ids)):
                shard.payload(row)
        except DamagedError:
            continue
        whole[int(path.stem.removeprefix("part-"))] = shard.record_ids
    return whole


class Store:
    """Signals that were captured before. Obtain one with `open`."""

    def __init__(self, folder: Path, header: Header, shards: list[_Shard], places: dict[str, tuple[int, int]]) -> None:
        self.folder, self.header = folder, header
        self._shards, self._places = shards, places

    @classmethod
    def open(cls, folder: Path, header: Header | None = None) -> Store:
        """Map all shards into memory and find every record.

        Args:
            header: what the signals must have been made from; None takes them as they are.

        Raises:
            DamagedError: a file is missing, torn, or of another store; a record is there twice; there is no record.
            ChangedError: they were made from something else.
        """
        found, listed = _read_header(folder)
        if header is not None:
            _check_same(found, header, folder / HEADER)
        paths = shard_paths(folder)
        _check_present(folder, listed, paths)
        shards = [_Shard(path, found) for path in paths]
        places: dict[str, tuple[int, int]] = {}
        for number, shard in enumerate(shards):
            places.update(zip(shard.record_ids, ((number, row) for row in range(len(shard.record_ids))), strict=True))
        if len(places) < sum(len(shard.record_ids) for shard in shards):
            raise _twice(shards)
        if not places:
            raise DamagedError("no record has signals", where=folder, do=AGAIN)
        return cls(folder, found, shards, places)

    def __reduce__(self) -> tuple[Any, ...]:
        """A process that loads data for the trainer maps the files anew."""
        return Store.open, (self.folder, self.header)

    @property
    def record_ids(self) -> list[str]:
        """All records, in the order of the shards."""
        return list(self._places)

    def num_targets(self, record_id: str) -> int:
        """Target positions of a record."""
        number, row = self._place(record_id)
        return int(self._shards[number].num_targets[row])

    def read(self, record_id: str, target_ids: Sequence[int] | Array) -> Rows:
        """One record's rows, see `read_all`."""
        return self.read_all([record_id], [target_ids])

    def read_all(self, record_ids: Sequence[str], target_ids: Sequence[Sequence[int] | Array]) -> Rows:
        """The rows of some records, one after the other.

        Args:
            target_ids: the tokens that each record is to be trained on.

        Raises:
            DamagedError: the file has other bytes than were written, or no distributions.
            ChangedError: the record is not there, or was captured for other targets.
        """
        wanted = [np.asarray(ids, "<i4") for ids in target_ids]
        payloads = [self._payload(record_id, ids) for record_id, ids in zip(record_ids, wanted, strict=True)]
        try:
            return decode(self.header, payloads, [len(ids) for ids in wanted])
        except ValueError:
            for record_id, payload, ids in zip(record_ids, payloads, wanted, strict=True):
                self._decode_one(record_id, payload, len(ids))
            raise

    def check(self, targets: Mapping[str, Sequence[int]]) -> None:
        """Read everything that training will read, so that damage is found before the first step.

        Args:
            targets: the tokens to train on by record id.

        Raises:
            DamagedError, ChangedError: as `read_all`.
        """
        missing = [record_id for record_id in targets if record_id not in self._places]
        if missing:
            raise _without_signals(missing, len(targets), self.folder)
        wanted = list(targets.items())
        step = 1 + len(self._places) * _CHECKED_BYTES // sum(shard.num_bytes for shard in self._shards)
        for start in range(0, len(wanted), step):
            record_ids, target_ids = zip(*wanted[start : start + step], strict=True)
            self.read_all(record_ids, target_ids)

    def _payload(self, record_id: str, target_ids: Array) -> memoryview:
        number, row = self._place(record_id)
        shard = self._shards[number]
        payload = shard.payload(row)
        stored = int(shard.num_targets[row])
        if stored != len(target_ids):
            what = (
                f"signals for {stored:,} target tokens are stored of record {record_id!r}, it has {len(target_ids):,}"
            )
        elif int(shard.targets[row]) != _hash(target_ids):
            what = f"signals of record {record_id!r} were captured for other target tokens"
        else:
            return payload
        advice = "the chat template, the tokenizer or the text is another: run `llmdistill signals --fresh`"
        raise ChangedError(what, where=shard.path, do=advice)

    def _decode_one(self, record_id: str, payload: memoryview, num_targets: int) -> None:
        try:
            decode(self.header, [payload], [num_targets])
        except ValueError as error:
            path = self._shards[self._place(record_id)[0]].path
            raise DamagedError(f"record {record_id!r}: {error}", where=path, do=_REDO) from error

    def _place(self, record_id: str) -> tuple[int, int]:
        if record_id not in self._places:
            raise _without_signals([record_id], 1, self.folder)
        return self._places[record_id]


class _Shard:
    """One file, mapped into memory; the columns but the payload as arrays."""

    def __init__(self, path: Path, header: Header) -> None:
        self.path = path
        try:
            with pa.memory_map(str(path)) as source:
                batch = _only_batch(pa.ipc.open_file(source))
            batch.validate(full=True)
            self._take(batch)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DamagedError(f"not readable as Arrow IPC ({error})", where=path, do=_REDO) from error
        _check_same(_header_in(batch.schema, path), header, path)

    def _take(self, batch: pa.RecordBatch) -> None:
        self.record_ids: list[str] = batch.column("id").to_pylist()
        columns = (batch.column(name).to_numpy() for name in ("num_targets", "targets", "crc32"))
        self.num_targets, self.targets, self._crc32 = columns
        _, offsets, data = batch.column("payload").buffers()
        if not self.record_ids:
            offsets = bytes(8)
        elif offsets is None or data is None or None in self.record_ids:
            raise ValueError("a column has no values")
        self._offsets = np.frombuffer(offsets, np.int64, len(self.record_ids) + 1)
        self._data = memoryview(data or b"")
        self.num_bytes = len(self._data)

    def payload(self, row: int) -> memoryview:
        """The bytes of a record, after a check against its checksum."""
        payload = self._data[self._offsets[row] : self._offsets[row + 1]]
        record_id, number, targets = self.record_ids[row], int(self.num_targets[row]), int(self.targets[row])
        if _crc32(record_id, number, targets, payload) != self._crc32[row]:
            what = f"the signals of record {record_id!r} are not as they were written"
            raise DamagedError(what, where=self.path, do=_REDO)
        return payload


def _batch(header: Header, rows: Sequence[Stored]) -> pa.RecordBatch:
    ids = [row.record_id for row in rows]
    lengths = [len(row.target_ids) for row in rows]
    hashes = [_hash(np.asarray(row.target_ids, "<i4")) for row in rows]
    payloads = [row.payload for row in rows]
    checks = list(map(_crc32, ids, lengths, hashes, payloads))
    values = [ids, lengths, hashes, checks, payloads]
    arrays = [pa.array(column, field.type) for column, field in zip(values, _SCHEMA, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=_SCHEMA.with_metadata({"header": json.dumps(header.to_json())}))


def _only_batch(reader: pa.ipc.RecordBatchFileReader) -> pa.RecordBatch:
    if not reader.schema.equals(_SCHEMA) or reader.num_record_batches != 1:
        raise ValueError("these are not the columns of a shard of signals")
    return reader.get_batch(0)


def _header_in(schema: pa.Schema, path: Path) -> Header:
    try:
        values = json.loads((schema.metadata or {}).get(b"header", b""))
    except ValueError as error:
        raise DamagedError("this shard has no readable header", where=path, do=_REDO) from error
    return Header.from_json(values, path)


def _hash(target_ids: Array) -> int:
    return int.from_bytes(hashlib.sha256(target_ids.tobytes()).digest()[:8], "little")


def _crc32(record_id: str, num_targets: int, targets: int, payload: bytes | memoryview) -> int:
    return zlib.crc32(payload, zlib.crc32(f"{record_id}\0{num_targets}\0{targets}".encode()))


def _read_header(folder: Path) -> tuple[Header, dict[str, Any]]:
    """The header, and of each shard by its file's name the number of its records and the first one's id."""
    path = folder / HEADER
    if not path.exists():
        raise DamagedError("there are no stored signals here", where=path, do="run `llmdistill signals`")
    values = read_json(path)
    header = Header.from_json(values, path)
    shards = values.get("shards")
    if not isinstance(shards, dict) or not all(map(_is_listing, shards.values())):
        raise DamagedError("this header does not list the shards", where=path, do=AGAIN)
    return header, shards


def _is_listing(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("records"), int) and isinstance(value.get("first"), str)


def _listed(folder: Path, header: Header) -> dict[str, Any]:
    """The shards of a folder that is captured into; none where nothing is there yet."""
    if not (folder / HEADER).exists():
        return {}
    found, shards = _read_header(folder)
    _check_same(found, header, folder / HEADER)
    return shards


def _check_same(found: Header, wanted: Header, where: Path) -> None:
    differences = found.differences(wanted)
    if differences:
        raise ChangedError(f"signals captured otherwise: {'; '.join(differences)}", where=where, do=_FRESH)


def _check_present(folder: Path, listed: dict[str, Any], paths: list[Path]) -> None:
    lost = [name for name in listed if not (folder / name).exists()]
    if lost:
        count = sum(listed[name]["records"] for name in lost)
        more = f" (and {len(lost) - 1} more files)" if len(lost) > 1 else ""
        what = (
            f"this file is missing{more}, with the signals of {count:,} records, the first {listed[lost[0]]['first']!r}"
        )
        raise DamagedError(what, where=folder / lost[0], do="restore it, or run `llmdistill signals` again")


def _twice(shards: list[_Shard]) -> DamagedError:
    seen: dict[str, Path] = {}
    for shard in shards:
        for record_id in shard.record_ids:
            if record_id in seen:
                what = f"record {record_id!r} is also in {seen[record_id].name}"
                return DamagedError(what, where=shard.path, do=_REDO)
            seen[record_id] = shard.path
    raise AssertionError("no record is there twice")


def _without_signals(missing: Sequence[str], total: int, folder: Path) -> ChangedError:
    what = f"no signals are stored for {len(missing):,} of {total:,} records, the first {missing[0]!r}"
    return ChangedError(what, where=folder, do="run `llmdistill signals` again")
