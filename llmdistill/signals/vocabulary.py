"""The vocabulary doctor: whether a teacher's distribution is one over the student's tokens.

Models of one family pad the output layer to different sizes, and equal sizes prove nothing: what counts are the
maps from tokens to ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from llmdistill.config import Model, Train
from llmdistill.engines.models import ModelSource, load_tokenizer, local_copy
from llmdistill.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from llmdistill.engines.examples import Example

Kind = Literal["same", "extended", "permuted", "different"]

_PROBE = "How much is 12.5 + 3?\n서울의 인구는 약 940만 명입니다.\n\tif x: return 'é 🍎'"
_MOST_NAMED = 5

UNSHARED = "unshared_token"
"""Reason for which a record is not trained on: the teacher does not know one of its tokens."""


@dataclass(frozen=True)
class Verdict:
    """What two vocabularies have in common.

    Attributes:
        kind: `same`, every token has one id in both; `extended`, so have all tokens up to `shared_ids` and one or
            both models have added tokens after them; `permuted`, the same tokens have other ids; `different`, none of
            these.
        shared_ids: number of leading ids that mean the same in both and are in both output layers; 0 if none do.
        common: share of the tokens of both, taken together, that both have.
        teacher_only, student_only: tokens that only one of them has, by id; all of them where `extended`, else none.
        clash: why the ids cannot be compared, a token and both ids; empty where they can.
        missing: tokens whose id is beyond an output layer, in words; such a model cannot write them.
        notes: what else differs and does not keep the ids from being compared, in words.
    """

    kind: Kind
    shared_ids: int
    common: float
    teacher_only: tuple[str, ...] = ()
    student_only: tuple[str, ...] = ()
    clash: str = ""
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def comparable(self) -> bool:
        """Whether a loss over the leading `shared_ids` is one over the same tokens."""
        return self.kind in ("same", "extended") and not self.missing

    def words(self) -> list[str]:
        """Lines for people: the verdict first, then what else differs."""
        return [self._headline(), *self.missing, *self.notes]

    def _headline(self) -> str:
        if self.kind == "same":
            return f"same tokens, {self.shared_ids:,} shared ids"
        if self.kind == "extended":
            sides = (("teacher", self.teacher_only), ("student", self.student_only))
            added = ", and ".join(f"the {side} adds {_named(tokens)}" for side, tokens in sides if tokens)
            return f"same tokens up to id {self.shared_ids - 1:,}; {added}"
        if self.kind == "permuted":
            return f"same tokens with other ids: {self.clash}"
        return f"other vocabularies, {self.common:.1%} of the tokens in common: {self.clash}"


def compare(
    teacher_tokenizer: PreTrainedTokenizerBase,
    student_tokenizer: PreTrainedTokenizerBase,
    teacher_rows: int | None = None,
    student_rows: int | None = None,
) -> Verdict:
    """Compare two vocabularies.

    Args:
        teacher_rows: size of the teacher's output layer, in tokens; None is that of its vocabulary.
        student_rows: the same of the student.
    """
    teacher, student = teacher_tokenizer.get_vocab(), student_tokenizer.get_vocab()
    layers = (teacher_rows or _size(teacher), student_rows or _size(student))
    both = teacher.keys() & student.keys()
    common = len(both) / max(len(teacher.keys() | student.keys()), 1)
    missing = _missing("teacher", teacher, layers[0]) + _missing("student", student, layers[1])
    set_apart = _set_apart(teacher_tokenizer) | _set_apart(student_tokenizer)
    kind, clash, first_added = _kind_of(teacher, student, both, set_apart)
    if clash:
        return Verdict(kind, 0, common, clash=clash, missing=missing)
    shared = min(*layers, *([] if first_added is None else [first_added]))
    notes = (
        *_special_notes(teacher_tokenizer, student_tokenizer),
        *_text_notes(teacher_tokenizer, student_tokenizer),
    )
    return Verdict(kind, shared, common, _only(teacher, both), _only(student, both), missing=missing, notes=notes)


def compare_models(teacher: ModelSource, student: ModelSource) -> Verdict:
    """Compare the vocabularies of two models that are on this machine, without loading their weights."""
    return compare(load_tokenizer(teacher), load_tokenizer(student), output_rows(teacher), output_rows(student))


def teacher_here(settings: Model) -> ModelSource | None:
    """The teacher's weights if they are on this machine; nothing is fetched."""
    if settings.weights is not None:
        return local_copy(settings.weights)
    return local_copy(settings.model, settings.revision, settings.trust_remote_code)


def output_rows(source: ModelSource) -> int:
    """Size of a model's output layer, in tokens, as its configuration says.

    Raises:
        ModelError: there is no configuration that says it.
    """
    return int(_text_config(source).vocab_size)


def longest_read(source: ModelSource) -> int:
    """Longest sequence that a model on disk was made for, in tokens.

    Raises:
        ModelError: there is no configuration.
    """
    return int(getattr(_text_config(source), "max_position_embeddings", None) or 1 << 30)


def _text_config(source: ModelSource) -> Any:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(source.path, trust_remote_code=source.trust_remote_code).get_text_config()
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ModelError(f"config.json cannot be used ({first})", where=source.name) from error
    if not isinstance(getattr(config, "vocab_size", None), int):
        raise ModelError("config.json does not say the vocabulary's size", where=source.name, do="use a language model")
    return config


def require_shared(verdict: Verdict, teacher_name: str) -> int:
    """Number of leading ids that both models share.

    Raises:
        ModelError: the ids mean other tokens, or a model cannot write some of its own.
    """
    if verdict.comparable:
        return verdict.shared_ids
    if verdict.missing:
        raise ModelError(verdict.missing[0], where=teacher_name, do="use a tokenizer that belongs to its model")
    what = f"teacher and student tokenizers differ: {verdict.clash}"
    if verdict.kind == "permuted":
        raise ModelError(what, where=teacher_name, do="use the tokenizer that each model was trained with")
    do = "set train.cross_tokenizer: uld or train.method: sft, or take a student of the teacher's family"
    raise ModelError(f"{what} ({verdict.common:.1%} of the tokens in common)", where=teacher_name, do=do)


def crosses(verdict: Verdict, settings: Train, teacher_name: str) -> bool:
    """Whether training compares sorted probabilities: it may, and the ids cannot be compared.

    Raises:
        ModelError: the ids cannot be compared, and `train.cross_tokenizer` does not say what to do then.
    """
    if settings.cross_tokenizer == "uld" and verdict.clash and not verdict.missing:
        return True
    require_shared(verdict, teacher_name)
    return False


def same_tokens(one: ModelSource, other: ModelSource) -> bool:
    """Whether two models give the same ids to the same tokens, so that their distributions can be compared."""
    verdict = compare_models(one, other)
    return verdict.kind == "same" and verdict.comparable


def unshared_id(example: Example, shared_ids: int) -> int | None:
    """The first token id of an example that the teacher does not know; None when all are shared."""
    ids = (id_ for part in (example.prompt, example.teacher_prompt, example.target) for id_ in part)
    return next((id_ for id_ in ids if id_ >= shared_ids), None)


def _set_apart(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Tokens that were added to a vocabulary: text becomes one only where it spells it, no merge leads there."""
    return {str(token.content) for token in tokenizer.added_tokens_decoder.values()}


def _kind_of(
    teacher: Mapping[str, int], student: Mapping[str, int], both: Set[str], set_apart: Set[str]
) -> tuple[Kind, str, int | None]:
    """The kind, why the ids cannot be compared, and the first id that only one of them has."""
    if teacher == student:
        return "same", "", None
    moved = min((token for token in both if teacher[token] != student[token]), default=None, key=teacher.__getitem__)
    if moved is not None:
        clash = f"{moved!r} is id {teacher[moved]:,} for the teacher and {student[moved]:,} for the student"
        return ("permuted" if teacher.keys() == student.keys() else "different"), clash, None
    last = max((teacher[token] for token in both), default=-1)
    alone = [("teacher", token, id_) for token, id_ in teacher.items() if token not in both]
    alone += [("student", token, id_) for token, id_ in student.items() if token not in both]
    for who, token, id_ in sorted(alone, key=lambda item: item[2]):
        # Mass on a token that any text may hold cannot be cut away: the teacher's distribution would be another.
        if id_ < last or token not in set_apart:
            return "different", f"only the {who} has {token!r} (id {id_:,})", None
    return "extended", "", min(id_ for _, _, id_ in alone)


def _only(vocabulary: Mapping[str, int], both: Set[str]) -> tuple[str, ...]:
    return tuple(sorted(vocabulary.keys() - both, key=vocabulary.__getitem__))


def _size(vocabulary: Mapping[str, int]) -> int:
    return max(vocabulary.values(), default=-1) + 1


def _missing(who: str, vocabulary: Mapping[str, int], rows: int) -> tuple[str, ...]:
    beyond = sorted((id_, token) for token, id_ in vocabulary.items() if id_ >= rows)
    if not beyond:
        return ()
    id_, token = beyond[0]
    more = f" and {len(beyond) - 1:,} more" if len(beyond) > 1 else ""
    return (f"the {who}'s output layer has {rows:,} ids, but its tokenizer has {token!r} at id {id_:,}{more}",)


def _named(tokens: tuple[str, ...]) -> str:
    names = ", ".join(map(repr, tokens[:_MOST_NAMED]))
    return names if len(tokens) <= _MOST_NAMED else f"{names} and {len(tokens) - _MOST_NAMED:,} more"


def _special_notes(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase) -> Iterable[str]:
    """Control tokens that differ. Both models are given the student's."""
    for name in ("bos_token", "eos_token", "pad_token"):
        one, other = getattr(teacher, name), getattr(student, name)
        if one != other:
            yield f"{name}: {one!r} for the teacher, {other!r} for the student"


def _text_notes(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase) -> Iterable[str]:
    """Text that is cut or rendered otherwise, which matters for what the teacher is asked."""
    if teacher.encode(_PROBE, add_special_tokens=False) != student.encode(_PROBE, add_special_tokens=False):
        yield "the same text is cut into other tokens: the teacher reads the student's cut, which it was not trained on"
    if _rendered(teacher) != _rendered(student):
        yield "the chat templates differ: the teacher is asked through the student's"


def _rendered(tokenizer: PreTrainedTokenizerBase) -> str:
    """A probe conversation as text, or what keeps the template from rendering it."""
    from jinja2 import TemplateError

    asked, told = {"role": "user", "content": _PROBE}, {"role": "assistant", "content": "네."}
    try:
        return tokenizer.apply_chat_template([asked, told, asked], add_generation_prompt=True, tokenize=False)
    except (TemplateError, ValueError) as error:
        return f"cannot be rendered: {error}"
