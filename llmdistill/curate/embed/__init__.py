"""Texts as vectors of unit length, for telling which are about the same thing; one file for each way.

Rows of a model are kept by the content of their text, so a second run, or a larger pool, computes only what is new.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llmdistill.config import Embed, Pipeline
from llmdistill.curate.cache import Compute, cached
from llmdistill.curate.embed import hidden, lsa, sentence, static
from llmdistill.curate.embed.lsa import tfidf
from llmdistill.curate.embed.rows import centre, to_unit, unit
from llmdistill.curate.embed.sources import find_source
from llmdistill.engines.models import ModelSource
from llmdistill.run.digest import Parts, digest_of

__all__ = ["embed", "embed_parts", "tfidf", "unit"]

_VERSIONS = {
    "tfidf": lsa.VERSION,
    "static": static.VERSION,
    "sentence": sentence.VERSION,
    "student": hidden.VERSION,
    "teacher": hidden.VERSION,
}
_PIECE_ROWS = {"static": 65_536, "sentence": 4096, "student": 256, "teacher": 256}
"""Texts that are computed again after a kill, at most: half a minute's work on a CPU."""


def embed(texts: Sequence[str], settings: Embed, pipeline: Pipeline, cache_dir: Path) -> np.ndarray:
    """Rows of length 1, [texts, d] float32, perhaps mapped from a file.

    A row is zero where a text has nothing to go by; a row that is not finite is left to the caller. Vectors of models
    that were not made for comparing texts all point one way: the mean over `texts` is taken from them (cf. arXiv
    1702.01417), so their cosines depend on the pool.

    Args:
        cache_dir: where the rows of models are kept from run to run.

    Raises:
        MissingExtraError: the method needs a package that is not installed.
        ModelError: its model cannot be found or used.
    """
    if not len(texts):
        return np.zeros((0, 0), dtype=np.float32)
    source = find_source(settings, pipeline)
    if source is None:
        return tfidf(texts)
    key = f"vectors-{settings.method}-{digest_of(_parts(settings, source))[:16]}"
    what, piece_rows = f"embed ({settings.method})", _PIECE_ROWS[settings.method]
    compute, run = _compute(settings, source), pipeline.run
    vectors = cached(cache_dir, key, texts, compute, what=what, piece_rows=piece_rows, run=run)
    if settings.method != "sentence":
        centre(to_unit(vectors))
    return to_unit(vectors)


def embed_parts(settings: Embed, pipeline: Pipeline) -> Parts:
    """What the vectors depend on beside the texts, for a stage's digest.

    Raises:
        MissingExtraError: the method needs a package that is not installed.
        ModelError: its model cannot be found.
    """
    if settings.method == "sentence":
        sentence.require_extra()
    return {f"embed.{name}": value for name, value in _parts(settings, find_source(settings, pipeline)).items()}


def _parts(settings: Embed, source: ModelSource | None) -> Parts:
    parts: Parts = {"method": settings.method, "version": _VERSIONS[settings.method]}
    if source is not None:
        parts |= {"model": source.name, "revision": source.revision, "max_tokens": settings.max_tokens}
    return parts


def _compute(settings: Embed, source: ModelSource) -> Compute:
    given = (source, settings.max_tokens, settings.batch_size, settings.device)
    if settings.method == "sentence":
        sentence.require_extra()
        return sentence.SentenceVectors(*given)
    if settings.method == "static":
        return static.StaticVectors(source, settings.max_tokens)
    return hidden.HiddenStates(*given)
