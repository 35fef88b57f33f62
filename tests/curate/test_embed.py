"""Each way to embed: against its definition, on real small models, whatever the order and the other texts."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import shutil
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from llmdistill.config import Embed, Pipeline
from llmdistill.curate.embed import embed, embed_parts, lsa, tfidf
from llmdistill.curate.embed.rows import centre, to_unit, unit
from llmdistill.errors import MissingExtraError, ModelError
from llmdistill.run.digest import digest_of
from tests.runs import pipeline
from tests.tiny import PROMPTS, save_tiny_model

ENGLISH = [json.loads(line)["prompt"] for line in PROMPTS.read_text("utf-8").split("\n") if line][:40]
KOREAN = ["김치찌개를 끓이는 방법", "김치찌개 끓이기에 필요한 재료", "주식에 투자하는 방법", "주식 투자의 위험"]
TEXTS = ENGLISH + KOREAN
HAS_EXTRA = importlib.util.find_spec("sentence_transformers") is not None
WITH_EXTRA = pytest.mark.skipif(not HAS_EXTRA, reason="needs the extra: pip install 'llmdistill[embed]'")
METHODS = ["tfidf", "static", pytest.param("sentence", marks=WITH_EXTRA), "student", "teacher"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    """Directory of a small BERT, as sentence-transformers saves it: mean of the tokens, then length 1."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=500, special_tokens=special))
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    wrapped.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=500, max_position_embeddings=128, **sizes)).save_pretrained(folder)
    kinds = ["Transformer", "Pooling", "Normalize"]
    paths = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 128, "do_lower_case": False}))
    for path in paths[1:]:
        (folder / path).mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


@pytest.fixture
def goal(tmp_path, tiny_model) -> Pipeline:
    name = {"model": str(tiny_model)}
    return pipeline(tmp_path, teacher=name, student=name)


def settings(method: str, encoder: Path, **more: object) -> Embed:
    return Embed(method=method, model=str(encoder) if method == "sentence" else None, **more)


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("method", METHODS)
def test_rows_have_length_1_and_do_not_depend_on_the_order_of_the_texts(method, goal, encoder, tmp_path):
    texts = [*TEXTS, TEXTS[0], ""]
    vectors = embed(texts, settings(method, encoder), goal, tmp_path / "one")
    assert vectors.dtype == np.float32 and len(vectors) == len(texts)
    assert np.allclose(np.linalg.norm(vectors[:-1], axis=1), 1, atol=1e-6)
    assert (vectors[0] == vectors[-2]).all()
    backwards = embed(texts[::-1], settings(method, encoder), goal, tmp_path / "other")
    assert (backwards[::-1] == vectors).all()


@pytest.mark.parametrize("method", METHODS)
def test_no_texts_and_one_text_give_a_defined_result(method, goal, encoder, tmp_path):
    assert embed([], settings(method, encoder), goal, tmp_path).shape == (0, 0)
    vectors = embed(["하나"], settings(method, encoder), goal, tmp_path)
    assert vectors.shape[0] == 1 and np.isfinite(vectors).all()


@pytest.mark.parametrize("method", ["static", pytest.param("sentence", marks=WITH_EXTRA), "student"])
def test_a_larger_pool_computes_only_what_is_new(method, goal, encoder, tmp_path):
    embed(TEXTS[:30], settings(method, encoder), goal, tmp_path / "cache")
    [folder] = (tmp_path / "cache").iterdir()
    first = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    grown = embed(TEXTS[::-1], settings(method, encoder, batch_size=3), goal, tmp_path / "cache")
    pieces = [np.load(path) for path in folder.iterdir()]
    assert sorted(map(len, pieces)) == [14, 30]
    assert all(path.stat().st_mtime_ns == first[path] for path in first)
    alone = embed(TEXTS[::-1], settings(method, encoder), goal, tmp_path / "fresh")
    assert np.allclose(grown, alone, atol=1e-5)


@pytest.mark.parametrize("method", ["static", "student"])
def test_a_row_that_is_not_finite_stays_so_and_spoils_no_other(method, tmp_path):
    broken = save_tiny_model(tmp_path / "model", num_layers=1)
    weights = load_file(broken / "model.safetensors")
    from tokenizers import Tokenizer

    token = Tokenizer.from_file(str(broken / "tokenizer.json")).encode("Z").ids[0]
    weights["model.embed_tokens.weight"][token] = math.nan
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    name = {"model": str(broken)}
    vectors = embed(
        ["A dog", "A cat", "Z"], Embed(method=method), pipeline(tmp_path, teacher=name, student=name), tmp_path
    )
    assert np.isfinite(vectors).all(1).tolist() == [True, True, False]


def test_parts_change_with_what_the_vectors_depend_on_and_nothing_else(goal, encoder, tmp_path, tiny_model):
    model = Path(shutil.copytree(encoder, tmp_path / "model"))

    def digest(**more: object) -> str:
        return digest_of(embed_parts(Embed(**{"method": "static", "model": str(model), **more}), goal))

    before = digest()
    assert digest(batch_size=1, device="cpu") == before
    assert digest(max_tokens=7) != before
    (model / "1_Pooling" / "config.json").write_text("{}")
    assert digest() != before
    parts = [embed_parts(Embed(method=method), goal) for method in ("tfidf", "static", "student", "teacher")]
    assert len(set(map(digest_of, parts))) == 4
    assert "embed.model" not in parts[0] and parts[1]["embed.model"] == str(tiny_model)


def test_the_student_that_is_cut_from_the_teacher_is_embedded_as_the_teacher(tmp_path, tiny_model):
    goal = pipeline(tmp_path, teacher={"model": str(tiny_model)}, student={"keep_layers": 2})
    student, teacher = (embed(TEXTS[:5], Embed(method=method), goal, tmp_path) for method in ("student", "teacher"))
    assert (student == teacher).all()


# tfidf


def slow_tfidf(texts: list[str]) -> np.ndarray:
    """The definition, with a dense matrix of texts and n-grams."""
    words = [Counter(unicodedata.normalize("NFKC", text).casefold().split()) for text in texts]
    vocabulary = sorted(set(itertools.chain.from_iterable(words)))
    grams = {word: ngrams_of(f" {word} ") for word in vocabulary}
    document_frequency: Counter[str] = Counter()
    for word in itertools.chain.from_iterable(words):
        document_frequency.update(grams[word].keys())
    columns = {gram: column for column, gram in enumerate(sorted(document_frequency))}
    rows = np.zeros((len(texts), len(columns)))
    for row, counts in zip(rows, words, strict=True):
        square = 0.0
        for word, count in counts.items():
            piece = np.zeros(len(columns))
            for gram, number in grams[word].items():
                frequency = min(len(texts), document_frequency[gram])
                piece[columns[gram]] = number * (math.log((1 + len(texts)) / (1 + frequency)) + 1)
            piece *= 1 + math.log(count)
            square += float(piece @ piece)
            row += piece
        row /= math.sqrt(square) or 1.0
    return rows


def ngrams_of(padded: str) -> Counter[str]:
    sizes = range(2, 6)
    return Counter(padded[start : start + size] for size in sizes for start in range(len(padded) - size + 1))


def test_tfidf_has_the_cosines_of_its_definition_where_no_dimension_is_cut_off():
    texts = [*TEXTS, "a b a", "ﬁne ﬁne  FINE"]
    assert len(texts) < lsa.DIMENSIONS
    slow = unit(slow_tfidf(texts))
    vectors = tfidf(texts).astype(np.float64)
    differences = np.abs(vectors @ vectors.T - slow @ slow.T)
    assert differences.mean() < 0.001 and differences.max() < 0.05  # one n-gram in 40 shares its bucket here


def test_tfidf_keeps_the_cosines_of_real_prompts_when_dimensions_are_cut_off(monkeypatch):
    full = tfidf(TEXTS)
    monkeypatch.setattr(lsa, "DIMENSIONS", 30)
    cut = tfidf(TEXTS)
    assert cut.shape == (len(TEXTS), 30)
    upper = np.triu_indices(len(TEXTS), 1)
    assert np.corrcoef((full @ full.T)[upper], (cut @ cut.T)[upper])[0, 1] > 0.8


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "texts",
    [
        ["x"],
        ["x", "y"],
        ["same text"] * 5,
        ["???", "!"],
        ["가", "나", "다"],
        ["\u200b", "a"],
        ["a" * 100_000, "b"],
        [""],
    ],
    ids=["one", "two", "same", "punctuation", "Korean", "invisible", "long", "empty"],
)
def test_tfidf_gives_unit_vectors_without_a_warning(texts):
    vectors = tfidf(texts)
    assert vectors.shape[0] == len(texts)
    lengths = np.linalg.norm(vectors, axis=1)
    assert np.all((np.abs(lengths - 1) < 1e-6) | (lengths == 0))
    assert (lengths == 0).tolist() == [not text.strip() for text in texts]


def test_tfidf_puts_korean_prompts_of_one_topic_together():
    vectors = tfidf([*KOREAN, *(f"다른 이야기 {number}번입니다" for number in range(4))])
    similar = vectors @ vectors.T
    assert similar[0, 1] > similar[0, 2] and similar[2, 3] > similar[2, 1]


# static


def static_model(folder: Path, tiny_model: Path, **more: torch.Tensor) -> dict[str, torch.Tensor]:
    """A model2vec directory with the tiny model's tokenizer."""
    from tokenizers import Tokenizer

    folder.mkdir()
    shutil.copy(tiny_model / "tokenizer.json", folder)
    size = Tokenizer.from_file(str(tiny_model / "tokenizer.json")).get_vocab_size()
    torch.manual_seed(0)
    tensors = {"embeddings": torch.randn(size, 8), **more}
    save_file(tensors, folder / "model.safetensors")
    return tensors


def centred_cosines(rows: list[np.ndarray]) -> np.ndarray:
    vectors = to_unit(np.array(rows, dtype=np.float64))
    vectors = to_unit(vectors - vectors.mean(0))
    return vectors @ vectors.T


def test_static_is_the_weighted_mean_of_the_student_s_token_embeddings(goal, tiny_model, tmp_path):
    from tokenizers import Tokenizer

    matrix = load_file(tiny_model / "model.safetensors")["model.embed_tokens.weight"].double().numpy()
    zipf = np.array([1 / (rank + 2) for rank in range(len(matrix))])
    weights = 1e-4 / (1e-4 + zipf / zipf.sum())
    tokens = (matrix - matrix.mean(0)) * weights[:, None]
    tokenizer = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    slow = [tokens[tokenizer.encode(text).ids[:9]].mean(0) for text in TEXTS]
    vectors = embed(TEXTS, Embed(method="static", max_tokens=9), goal, tmp_path)
    assert np.allclose(vectors @ vectors.T, centred_cosines(slow), atol=1e-5)


@pytest.mark.parametrize("shared", [False, True], ids=["a vector for each token", "tokens that share vectors"])
def test_a_model2vec_directory_is_read_as_it_was_made(shared, goal, tiny_model, tmp_path):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    size = tokenizer.get_vocab_size()
    more = {"mapping": torch.arange(size) % 20, "weights": torch.rand(size)} if shared else {}
    tensors = static_model(tmp_path / "static", tiny_model, **more)
    ids = [tokenizer.encode(text).ids for text in TEXTS]
    tokens = tensors["embeddings"].double()
    if shared:
        tokens = tokens[more["mapping"]] * more["weights"][:, None]
    vectors = embed(TEXTS, Embed(method="static", model=str(tmp_path / "static")), goal, tmp_path)
    assert np.allclose(vectors @ vectors.T, centred_cosines([tokens[row].mean(0).numpy() for row in ids]), atol=1e-5)


@pytest.mark.parametrize("missing", ["tokenizer.json", "model.safetensors", "tokens"])
def test_a_directory_that_is_no_static_model_is_one_clear_error(missing, goal, tiny_model, tmp_path):
    tensors = static_model(tmp_path / "static", tiny_model)
    if missing == "tokens":
        save_file({"embeddings": tensors["embeddings"][:5].clone()}, tmp_path / "static" / "model.safetensors")
    else:
        (tmp_path / "static" / missing).unlink()
    with pytest.raises(ModelError):
        embed(TEXTS, Embed(method="static", model=str(tmp_path / "static")), goal, tmp_path)


# student, teacher


def test_student_is_the_mean_of_each_text_s_own_hidden_states_whatever_stands_beside_it(goal, tiny_model, tmp_path):
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = AutoModel.from_pretrained(tiny_model, dtype=torch.float32).eval()
    slow = []
    for text in TEXTS:
        ids = torch.tensor([tokenizer.encode(text)[:100]])
        with torch.inference_mode():
            slow.append(model(input_ids=ids).last_hidden_state[0].mean(0).double().numpy())
    wanted = centred_cosines(slow)
    vectors = embed(TEXTS, Embed(method="student", max_tokens=100, batch_size=7, device="cpu"), goal, tmp_path)
    assert np.allclose(vectors @ vectors.T, wanted, atol=0.05)  # a CPU may compute in bfloat16


# sentence


@WITH_EXTRA
def test_sentence_is_what_the_model_s_modules_say(goal, encoder, tmp_path):
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(encoder), AutoModel.from_pretrained(encoder).eval()
    slow = []
    for text in TEXTS:
        with torch.inference_mode():
            ids = tokenizer(text, truncation=True, max_length=20, return_tensors="pt")["input_ids"]
            slow.append(model(input_ids=ids).last_hidden_state[0].mean(0).numpy())
    vectors = embed(TEXTS, settings("sentence", encoder, max_tokens=20, batch_size=5), goal, tmp_path)
    assert np.allclose(vectors, unit(np.array(slow)), atol=1e-4)


@WITH_EXTRA
def test_a_model_that_wants_code_of_its_own_is_refused_and_the_code_not_run(goal, encoder, tmp_path):
    model = Path(shutil.copytree(encoder, tmp_path / "model"))
    modules = json.loads((model / "modules.json").read_text("utf-8"))
    modules[1]["type"] = "own_code.Pooling"
    (model / "modules.json").write_text(json.dumps(modules))
    (model / "own_code.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')")
    with pytest.raises(ModelError, match="own_code.Pooling"):
        embed(TEXTS, settings("sentence", model), goal, tmp_path)
    assert not (tmp_path / "was_run").exists()


@WITH_EXTRA
def test_weights_that_are_not_safetensors_are_refused(goal, encoder, tmp_path):
    model = Path(shutil.copytree(encoder, tmp_path / "model"))
    modules = json.loads((model / "modules.json").read_text("utf-8"))
    modules[2] |= {"path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    (model / "modules.json").write_text(json.dumps(modules))
    (model / "2_Dense").mkdir()
    (model / "2_Dense" / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(ModelError, match="not safetensors"):
        embed(TEXTS, settings("sentence", model), goal, tmp_path)


def test_without_the_extra_one_line_names_what_to_install(goal, encoder, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="sentence-transformers") as caught:
        embed_parts(settings("sentence", encoder), goal)
    assert "pip install 'llmdistill[embed]'" in str(caught.value)


def test_a_model_that_is_nowhere_is_one_clear_error(goal):
    with pytest.raises(ModelError):
        embed_parts(Embed(method="static", model="no-such/model"), goal)


# rows


def test_a_zero_row_stays_zero_and_centring_leaves_nothing_of_rows_that_are_all_equal():
    assert unit(np.array([[0.0, 0.0], [3.0, 4.0]])).tolist() == [[0.0, 0.0], [0.6, 0.8]]
    equal = to_unit(np.full((7, 3), 0.3, dtype=np.float32))
    assert (to_unit(centre(equal)) == 0).all()
