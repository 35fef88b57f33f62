"""Mean of a model's token embeddings: no forward pass, a thousandth of its time.

The matrix is that of a static model (model2vec, sentence-transformers' StaticEmbedding), or the input embeddings of a
language model or an encoder, read from its safetensors file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from llmdistill.engines.models import ModelSource
from llmdistill.errors import ModelError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

VERSION = 1
"""Changes with what the vectors are."""

_STATIC = ("embeddings", "embedding.weight")
_INPUT = ("embed_tokens.weight", "word_embeddings.weight", "wte.weight", "tok_embeddings.weight")
_SIF = 1e-4
_TEXTS_AT_ONCE = 1024


class StaticVectors:
    """Token vectors, read on the first texts, and what cuts texts into tokens. Nothing of the model is run."""

    def __init__(self, source: ModelSource, max_tokens: int) -> None:
        self._source, self._max_tokens = source, max_tokens
        self._loaded: tuple[np.ndarray, Tokenizer] | None = None

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors [texts, d], float32; a text without tokens has a zero row.

        Raises:
            ModelError: the directory holds no matrix of token embeddings, or no tokenizer.json.
        """
        if self._loaded is None:
            matrix, made_for_it = _token_matrix(self._source)
            tokenizer = _tokenizer(self._source, self._max_tokens)
            if tokenizer.get_vocab_size() > len(matrix):
                message = (
                    f"its tokenizer knows {tokenizer.get_vocab_size():,} tokens, but {len(matrix):,} have a vector"
                )
                raise ModelError(message, where=self._source.name, do="use another model for embed")
            self._loaded = matrix if made_for_it else weighted(matrix), tokenizer
        tokens, tokenizer = self._loaded
        rows = np.zeros((len(texts), tokens.shape[1]), dtype=np.float32)
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            block = list(texts[start : start + _TEXTS_AT_ONCE])
            for row, encoded in enumerate(tokenizer.encode_batch_fast(block, add_special_tokens=False), start):
                if encoded.ids:
                    rows[row] = tokens[encoded.ids].mean(0)
        return rows


def weighted(matrix: np.ndarray) -> np.ndarray:
    """Token vectors whose plain mean tells texts apart: centred, and scaled by how rare a token is.

    Smooth inverse frequency a / (a + p) (Arora et al., ICLR 2017, who advise an a of 1e-3 to 1e-4), where p is Zipf's
    law over the token's id, as model2vec does: tokenizers number their tokens by frequency. So a text's vector does
    not depend on the other texts.
    """
    probability = 1.0 / np.arange(2, len(matrix) + 2)
    weights = _SIF / (_SIF + probability / probability.sum())
    centre = matrix[np.isfinite(matrix).all(1)].mean(0)
    return ((matrix - centre) * weights[:, None]).astype(np.float32)


def _tokenizer(source: ModelSource, max_tokens: int) -> Tokenizer:
    from tokenizers import Tokenizer

    found = sorted(source.path.rglob("tokenizer.json"), key=lambda path: len(path.parts))
    if not found:
        raise ModelError("it has no tokenizer.json", where=source.name, do="use another model for embed")
    try:
        tokenizer = Tokenizer.from_file(str(found[0]))
    except Exception as error:  # tokenizers raises plain Exception
        first = str(error).splitlines()[0]
        raise ModelError(f"tokenizer.json is not readable ({first})", where=source.name, do="fetch it again") from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    return tokenizer


def _token_matrix(source: ModelSource) -> tuple[np.ndarray, bool]:
    """[vocabulary, d] float32, and whether it was made to be averaged."""
    from safetensors import SafetensorError, safe_open

    for file in sorted(source.path.rglob("*.safetensors")):
        try:
            with safe_open(file, "pt") as tensors:
                found = {name: tensors.get_tensor(name).float().numpy() for name in tensors.keys() if _is_wanted(name)}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ModelError(f"not readable as safetensors ({error})", where=file, do="fetch it again") from error
        for name, matrix in found.items():
            if matrix.ndim == 2:
                return _of_static_model(found, matrix) if name in _STATIC else (matrix, False)
    raise ModelError("no matrix of token embeddings in its safetensors files", where=source.name, do="use another one")


def _is_wanted(name: str) -> bool:
    return name in (*_STATIC, "weights", "mapping") or name.endswith(_INPUT)


def _of_static_model(found: dict[str, np.ndarray], matrix: np.ndarray) -> tuple[np.ndarray, bool]:
    """model2vec may keep weights of the tokens, and one vector for several tokens, beside the vectors."""
    if "mapping" in found:
        matrix = matrix[found["mapping"].astype(np.int64)]
    if "weights" in found:
        matrix = matrix * found["weights"][:, None]
    return matrix, True
