"""What a store of signals was made from; training with anything else is refused, and told what differs."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from llmdistill.errors import DamagedError

VERSION = 1
"""Of the files' format."""

AGAIN = "remove the folder and run `llmdistill signals` again"

_NAMES = {
    "teacher_revision": "the teacher's revision",
    "tokenizer_sha256": "the tokenizer",
    "chat_template_sha256": "the chat template",
    "teacher_template_sha256": "the teacher's prompt template",
    "vocab_size": "the vocabulary size",
    "log_probs": "the type of log-probabilities",
    "version": "the format version",
}
_UNUSED = {"topk": {"draws", "seed"}, "sampled": {"k", "log_probs"}}


@dataclass(frozen=True)
class Header:
    """How signals were captured, and how their bytes are to be read.

    Attributes:
        vocab_size: number of leading ids that both models share; the distribution is that over them alone.
        k: tokens kept of each position, in mode `topk`.
        draws: tokens drawn at each position, in mode `sampled`.
        log_probs: how a log-probability is stored, in mode `topk`.
        temperature: what the teacher's logits were divided by.
        seed: of the draws.
        dtype: what the teacher computed in.
    """

    teacher: str
    teacher_revision: str
    tokenizer_sha256: str
    chat_template_sha256: str
    teacher_template_sha256: str
    vocab_size: int
    mode: Literal["topk", "sampled"]
    k: int
    draws: int
    log_probs: Literal["uint8", "float16", "float32"]
    temperature: float
    seed: int
    dtype: str = "auto"
    version: int = VERSION

    def to_json(self) -> dict[str, Any]:
        """As it is written."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: object, where: Path) -> Header:
        """As it was written to `where`.

        Raises:
            DamagedError: it is not a header, or one of another format version.
        """
        if not isinstance(values, Mapping) or "version" not in values:
            raise DamagedError("this is no header of stored signals", where=where, do=AGAIN)
        if values["version"] != VERSION:
            message = f"signals of format version {values['version']!r}, this program reads version {VERSION}"
            raise DamagedError(message, where=where, do=AGAIN)
        try:
            return _reader().validate_json(json.dumps(values), strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            what = f"this header of stored signals is not whole ({'.'.join(map(str, first['loc']))}: {first['msg']})"
            raise DamagedError(what, where=where, do=AGAIN) from error

    def differences(self, now: Header) -> list[str]:
        """What is other now than in this header, in words; hashes by their first eight digits."""
        before, after = self.to_json(), now.to_json()
        unused = _UNUSED[self.mode] if self.mode == now.mode else set()
        return [
            f"{_NAMES.get(name, name)} is {_short(name, before[name])} in the store, {_short(name, after[name])} now"
            for name in before
            if before[name] != after[name] and name not in unused
        ]


@functools.cache
def _reader() -> TypeAdapter[Header]:
    return TypeAdapter(Header)


def _short(name: str, value: object) -> str:
    return str(value)[:8] if name.endswith("sha256") else str(value)
