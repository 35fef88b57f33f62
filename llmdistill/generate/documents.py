"""Reading the user's documents: one .txt or .md file or a folder of them, cut into chunks.

A file that cannot be used is set aside with its reason and the others go on. A hidden file, a hidden folder and
a linked folder are one such row each: what is in the folders is not looked at.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import regex

from llmdistill.config import Prompts
from llmdistill.errors import ConfigError, InputError
from llmdistill.pipeline_file import find_file, shipped_root
from llmdistill.record import Record, Reject, Source, record_id
from llmdistill.rows import storable
from llmdistill.run.files import sha256_of

SUFFIXES = (".txt", ".md")
MAX_BYTES = 64 << 20
"""A file is read whole; a bigger one is set aside."""

_LONGEST_HEADING = 200

_PARAGRAPH = regex.compile(r"\n[ \t]*\n\s*")
_SENTENCE = regex.compile(r"""(?:[.!?…]["'”’»)\]」』]*\s|[。！？]["'”’」』]*|\n)\s*""")
_SPACE = regex.compile(r"\s+")
_GRAPHEME = regex.compile(r"\X")


@dataclass(frozen=True)
class _Found:
    """A file, or what was found in a file's place and why it cannot be used. `name` is relative to the folder."""

    name: str
    path: Path
    reason: str = ""
    detail: str = ""


class _BadFileError(Exception):
    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


def read_documents(settings: Prompts) -> tuple[list[Record], list[Reject]]:
    """The chunks of all documents, in the order of the file names, and the files that cannot be used.

    A chunk's `source.key` is its file's path inside the folder and its number from 1. A chunk that was there
    before, word by word, is a reject too.

    Raises:
        ConfigError: there is no such file or folder.
        InputError: it is a file of another kind.
    """
    root, records, rejects = find_documents(settings.path), list[Record](), list[Reject]()
    seen: dict[str, str] = {}
    for found in _files(root):
        try:
            text = _text(found)
        except _BadFileError as error:
            rejects.append(_reject(found.name, error.reason, error.detail))
            continue
        for number, chunk in enumerate(chunks(text, settings.chunk_chars, settings.chunk_overlap), start=1):
            record = _record(chunk, f"{found.name}:{number}", settings, root)
            if record.id in seen:
                rejects.append(_reject(str(record.source.key), "duplicate_chunk", f"same as {seen[record.id]}"))
            else:
                seen[record.id] = str(record.source.key)
                records.append(record)
    return records, rejects


def documents_hash(settings: Prompts) -> str:
    """Hash of the names and the contents of everything that `read_documents` would read or set aside."""
    rows = [
        [found.name, found.reason, found.detail if found.reason else _hash_of(found.path)]
        for found in _files(find_documents(settings.path))
    ]
    return hashlib.sha256(json.dumps(rows).encode("ascii")).hexdigest()


def _hash_of(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        return str(error.strerror)


def find_documents(name: str) -> Path:
    """Find a folder or a file of documents: from the working directory, else among those shipped.

    Raises:
        ConfigError: there is none.
        InputError: it is a file of another kind.
    """
    for root in (Path(), shipped_root()):
        try:
            if (root / name).is_dir():
                return root / name
        except (OSError, ValueError):
            break
    path = find_file(name, "file or folder of documents")
    if path.suffix.lower() not in SUFFIXES:
        advice = "give a .jsonl, .json or .parquet file of prompts, or documents: a .txt or .md file, or a folder"
        raise InputError("unknown kind of file", where=path, do=advice)
    return path


def _files(root: Path) -> list[_Found]:
    """Everything in the folder in the order of its names, whatever order the file system gives."""
    found = list(_walk(root, root)) if root.is_dir() else [_look_at(root, storable(root.name))]
    return sorted(found, key=lambda item: (item.name, str(item.path).encode("utf-8", "surrogateescape")))


def _walk(folder: Path, root: Path) -> Iterator[_Found]:
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        if folder == root:
            raise ConfigError(f"this folder cannot be read ({error.strerror})", where=root) from None
        yield _Found(_name(folder, root), folder, "unreadable", str(error.strerror))
        return
    for entry in entries:
        path = Path(entry.path)
        if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
            yield from _walk(path, root)
        else:
            yield _look_at(path, _name(path, root))


def _name(path: Path, root: Path) -> str:
    """Path inside the folder, with `/`, in composed form: some systems give Hangul names in pieces."""
    return unicodedata.normalize("NFC", storable(path.relative_to(root).as_posix()))


def _look_at(path: Path, name: str) -> _Found:
    """What can be known without reading the file."""
    try:
        path.name.encode("utf-8")
        information = path.stat()
    except UnicodeEncodeError:
        return _Found(name, path, "unreadable_name", "the file name is not UTF-8")
    except OSError as error:
        return _Found(name, path, "unreadable", str(error.strerror))
    if path.name.startswith("."):
        return _Found(name, path, "hidden")
    if stat.S_ISDIR(information.st_mode):
        return _Found(name, path, "linked_folder", "links to folders are not followed")
    if not stat.S_ISREG(information.st_mode):
        return _Found(name, path, "not_a_file", "neither a file nor a folder")
    if path.suffix.lower() not in SUFFIXES:
        return _Found(name, path, "unknown_kind", f"{path.suffix or 'no suffix'}; read are {', '.join(SUFFIXES)}")
    if information.st_size > MAX_BYTES:
        return _Found(name, path, "too_large", f"{information.st_size:,} bytes, at most {MAX_BYTES:,}")
    return _Found(name, path) if os.access(path, os.R_OK) else _Found(name, path, "unreadable", "no permission")


def _text(found: _Found) -> str:
    """The text of a file, its lines ended by line feeds."""
    if found.reason:
        raise _BadFileError(found.reason, found.detail)
    try:
        data = found.path.read_bytes()
    except OSError as error:
        raise _BadFileError("unreadable", str(error.strerror)) from None
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise _BadFileError("invalid_utf8", "this is UTF-16; save it as UTF-8")
    if b"\0" in data:
        raise _BadFileError("binary", f"a zero byte at byte {data.index(bytes(1))}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _BadFileError("invalid_utf8", f"byte {error.start}") from None
    if not text.strip():
        raise _BadFileError("empty_file")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _record(chunk: str, key: str, settings: Prompts, root: Path) -> Record:
    prompt = [{"role": "user", "content": chunk}]
    source = Source(settings.dataset or storable(root.resolve().stem), None, key, settings.licence)
    return Record(record_id(prompt), prompt, source=source)


def _reject(place: str, reason: str, detail: str) -> Reject:
    blank = Record(id=record_id([{"role": "row", "content": place}]), prompt=[])
    return Reject(blank, "prompts", reason, detail, place)


def chunks(text: str, num_chars: int, overlap: int) -> Iterator[str]:
    """Cut a text into pieces of at most `num_chars` characters, each at most `overlap` of them shared with the next.

    A piece ends where a paragraph ends, else a sentence, else a word, if one does in its second half; else
    between two characters as people see them. What is shared begins with a sentence, else with a word.
    """
    start = 0
    while start < len(text):
        end = len(text) if len(text) - start <= num_chars else _end(text, start, num_chars)
        piece = text[start:end].strip()
        if piece:
            yield piece
        if end == len(text):
            return
        start = _start(text, start, end, overlap)


def _end(text: str, start: int, num_chars: int) -> int:
    limit, earliest = start + num_chars, start + num_chars // 2 + 1
    for boundary in (_PARAGRAPH, _SENTENCE, _SPACE):
        ends = [match.end() for match in boundary.finditer(text, earliest - 1, limit)]
        ends = [place for place in ends if place >= earliest and _may_end(text, place)]
        if ends:
            return int(ends[-1])
    ends = [place for place in _grapheme_ends(text, start, limit + 1) if earliest <= place <= limit]
    return ends[-1] if ends else limit


def _start(text: str, start: int, end: int, overlap: int) -> int:
    """Where the piece after `text[start:end]` begins: at or before `end`."""
    earliest = end - overlap
    for boundary in (_SENTENCE, _SPACE):
        for match in boundary.finditer(text, max(0, earliest - 1), end):
            if earliest <= match.end() < end and not _is_mark(text[match.end()]):
                return int(match.end())
    return next(place for place in [*_grapheme_ends(text, start, end), end] if place >= earliest)


def _grapheme_ends(text: str, start: int, end: int) -> list[int]:
    """Places between two characters as people see them (Unicode's extended grapheme clusters)."""
    return [match.end() for match in _GRAPHEME.finditer(text, start, end)]


def _may_end(text: str, place: int) -> bool:
    """Whether a piece may end here: not inside a character, and not between a heading and what it stands above."""
    line = text[max(0, place - _LONGEST_HEADING) : place].rstrip().rpartition("\n")[2]
    return not _is_mark(text[place]) and not line.startswith("#")


def _is_mark(character: str) -> bool:
    """Whether the character joins the one before it, even a space."""
    return unicodedata.category(character).startswith("M") or character == "\u200d"
