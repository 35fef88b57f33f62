"""The loss in chunks against the formulas on whole logits: its value, its gradients, and what it holds in memory."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import NamedTuple

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llmdistill.errors import ConfigError
from llmdistill.signals.distributions import Distribution, Full, Head, TopK
from llmdistill.train.losses import fused
from llmdistill.train.losses.dense import DIVERGENCES
from llmdistill.train.losses.mix import Mix, Terms, distillation_loss, naive_terms
from tests.train.losses.references import draw, full, top_k

TARGETS, VOCABULARY, HIDDEN = 11, 29, 6
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
SFT = Mix(soft_weight=0.0, hard_weight=1.0)
KINDS = ("full", "top_k", "samples", "sft")
POSSIBLE = [(name, kind) for name in DIVERGENCES for kind in KINDS if kind != "samples" or name == "forward_kl"]


@dataclass
class Case:
    """A student's last hidden states and its output layer."""

    hidden: torch.Tensor
    head: Head
    labels: torch.Tensor

    @property
    def inputs(self) -> list[torch.Tensor]:
        tensors = (self.hidden, self.head.weight, self.head.bias)
        return [tensor for tensor in tensors if tensor is not None and tensor.requires_grad]


def case(
    dtype: torch.dtype = torch.float64, bias: bool = False, targets: int = TARGETS, rows: int = VOCABULARY, **head
) -> Case:
    hidden, weight = torch.randn(targets, HIDDEN, dtype=dtype), torch.randn(rows, HIDDEN, dtype=dtype)
    own = torch.randn(rows, dtype=dtype).requires_grad_() if bias else None
    layer = Head(weight.requires_grad_(), own, **head)
    return Case(hidden.requires_grad_(), layer, torch.randint(rows, (targets,)))


def teachers(dtype: torch.dtype, temperature: float, k: int = 5) -> dict[str, Distribution]:
    known = full(TARGETS, VOCABULARY, rows=VOCABULARY + 3, dtype=dtype)
    logits = known.logits().to(dtype)
    return {"full": known, "top_k": top_k(logits, k, temperature), "samples": draw(logits, 12, temperature)}


def naive(what: Case, teacher: Distribution | None, mix: Mix) -> Terms:
    return naive_terms(what.head.logits(what.hidden), what.labels, teacher, mix)


def all_of(what: Case, terms: Terms) -> list[torch.Tensor]:
    """Total, soft and hard as far as there are any, and every gradient of a multiple of the total."""
    gradients = torch.autograd.grad(0.37 * terms.total, what.inputs)
    return [values.detach() for values in (*terms, *gradients) if values is not None]


def distance(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    assert [values.shape for values in found] == [values.shape for values in expected]
    pairs = zip(found, expected, strict=True)
    return max(float((a.double() - b.double()).norm() / (b.double().norm() + 1e-12)) for a, b in pairs)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("hard_weight", [0.0, 0.3])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_chunks_give_the_loss_and_every_gradient_of_the_formula(name, hard_weight, temperature, dtype):
    torch.manual_seed(0)
    mix = Mix(name, 0.7, hard_weight, temperature)
    heads = ({"bias": True}, {"scale": 1.5, "softcap": 4.0})
    for kind, teacher in teachers(dtype, temperature).items():
        if kind == "samples" and name != "forward_kl":
            continue
        for head in heads:
            what = case(dtype, **head)
            expected = all_of(what, naive(what, teacher, mix))
            for rows in (1, 4, 50):
                found = all_of(what, distillation_loss(what.hidden, what.head, what.labels, teacher, mix, rows))
                assert distance(found, expected) < TOLERANCE[dtype], (kind, head, rows)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("mix", [SFT, Mix(hard_weight=0.5)])
def test_without_a_teacher_it_is_cross_entropy(mix, dtype):
    what = case(dtype, bias=True)
    expected = all_of(what, naive(what, None, mix))
    for rows in (1, 4, None):
        found = all_of(what, distillation_loss(what.hidden, what.head, what.labels, None, mix, rows))
        assert distance(found, expected) < TOLERANCE[dtype]


def test_a_teacher_with_weight_0_is_not_looked_at():
    what = case()
    broken = TopK(torch.full((TARGETS, 2), 10**9), torch.zeros(TARGETS, 2), torch.zeros(TARGETS))
    terms = distillation_loss(what.hidden, what.head, what.labels, broken, SFT)
    assert terms.soft is None and terms.hard.isfinite().all()


@pytest.mark.parametrize("kind", ["full", "top_k", "samples"])
@pytest.mark.parametrize("hard_weight", [0.0, 0.3])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_gradients_are_those_of_finite_differences(kind, hard_weight, temperature):
    torch.manual_seed(1)
    teacher, what = teachers(torch.float64, temperature)[kind], case(bias=True, softcap=6.0, scale=0.8)
    mix = Mix(hard_weight=hard_weight, temperature=temperature)

    def total() -> torch.Tensor:
        return distillation_loss(what.hidden, what.head, what.labels, teacher, mix, 4).total

    for values, gradient in zip(what.inputs, torch.autograd.grad(total(), what.inputs), strict=True):
        direction = torch.randn_like(values)
        with torch.no_grad():
            ahead = values.add_(1e-5 * direction) is not None and total()
            behind = values.sub_(2e-5 * direction) is not None and total()
            values.add_(1e-5 * direction)
        assert float((ahead - behind) / 2e-5) == pytest.approx(float((gradient * direction).sum()), rel=1e-7)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_top_k_of_all_tokens_is_the_full_teacher(name, dtype):
    torch.manual_seed(2)
    mix, what = Mix(name, hard_weight=0.1, temperature=1.5), case(dtype)
    known = teachers(dtype, 1.5, k=VOCABULARY)
    one, other = (
        all_of(what, distillation_loss(what.hidden, what.head, what.labels, known[kind], mix, 4))
        for kind in ("full", "top_k")
    )
    assert distance(one, other) < 1e-5


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("hard_weight", [0.0, 0.2])
def test_ids_the_teacher_lacks_count_for_the_cross_entropy_alone(name, hard_weight):
    mix, what = Mix(name, hard_weight=hard_weight), case(rows=VOCABULARY + 4)
    teacher = full(TARGETS, VOCABULARY)
    what.labels[0] = VOCABULARY + 2
    found = distillation_loss(what.hidden, what.head, what.labels, teacher, mix, 4)
    expected = all_of(what, naive(what, teacher, mix))
    assert distance(all_of(what, found), expected) < 1e-10
    shared = replace(what.head, weight=what.head.weight[:VOCABULARY])
    alone = distillation_loss(what.hidden, shared, what.labels, teacher, replace(mix, hard_weight=0.0))
    assert torch.allclose(found.soft, alone.soft)
    (gradient,) = torch.autograd.grad(
        distillation_loss(what.hidden, what.head, what.labels, teacher, mix).total, what.head.weight
    )
    assert bool(gradient[VOCABULARY:].any()) == bool(hard_weight)


@dataclass(frozen=True)
class Narrow(TopK):
    """A stored distribution that says how many ids it is over."""

    vocab_size: int = VOCABULARY - 4

    def chunk(self, start: int, stop: int) -> Narrow:
        return Narrow(self.ids[start:stop], self.log_probs[start:stop], self.tail_log_prob[start:stop])


def test_a_stored_distribution_over_fewer_ids_is_compared_over_those():
    known, what = full(TARGETS, VOCABULARY - 4), case()
    every = top_k(known.logits().double(), VOCABULARY - 4)
    stored = Narrow(every.ids, every.log_probs, every.tail_log_prob)
    one, other = (
        all_of(what, distillation_loss(what.hidden, what.head, what.labels, teacher, Mix(hard_weight=0.1), 4))
        for teacher in (known, stored)
    )
    assert distance(one, other) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_summed_in_float32_over_any_number_of_chunks(kind, monkeypatch):
    torch.manual_seed(3)
    monkeypatch.setattr(fused, "VOCABULARY_BLOCK", 10)
    exact, teacher = case(torch.float32, targets=200, bias=True), full(200, VOCABULARY, dtype=torch.float32)
    known = {"full": teacher, "top_k": top_k(teacher.logits(), 5), "samples": draw(teacher.logits(), 12), "sft": None}
    mix = SFT if kind == "sft" else Mix(hard_weight=0.1)
    with torch.no_grad():
        for values in exact.inputs:
            values.copy_(values.bfloat16())
    layer = Head(*(tensor.detach().bfloat16().requires_grad_() for tensor in (exact.head.weight, exact.head.bias)))
    what = Case(exact.hidden.detach().bfloat16().requires_grad_(), layer, exact.labels)
    expected = all_of(exact, naive(exact, known[kind], mix))
    for rows in (1, 200):
        terms = distillation_loss(what.hidden, what.head, what.labels, known[kind], mix, rows)
        assert terms.total.dtype == torch.float32
        assert distance(all_of(what, terms), expected) < 0.01
        gradients = torch.autograd.grad(
            distillation_loss(what.hidden, what.head, what.labels, known[kind], mix, rows).total, what.inputs
        )
        assert {gradient.dtype for gradient in gradients} == {torch.bfloat16}


def test_autocast_multiplies_in_bfloat16_and_keeps_the_weights_dtype():
    torch.manual_seed(4)
    what, teacher = case(torch.float32, bias=True), full(TARGETS, VOCABULARY, dtype=torch.float32)
    mix = Mix(hard_weight=0.1)
    expected = all_of(what, naive(what, teacher, mix))
    with torch.autocast("cpu", torch.bfloat16), Recorded() as seen:
        terms = distillation_loss(what.hidden, what.head, what.labels, teacher, mix, 4)
    found = all_of(what, terms)
    assert {values.dtype for values in found} == {torch.float32}
    assert 1e-6 < distance(found, expected) < 0.02
    assert {made.dtype for made in seen.made if "aten.mm" in made.operation} == {torch.bfloat16, torch.float32}


@pytest.mark.parametrize(("name", "kind"), POSSIBLE)
def test_no_targets_are_a_loss_of_0_with_gradients_of_0(name, kind):
    what = case(targets=0, bias=True)
    teacher = None if kind == "sft" else teachers(torch.float64, 1.0)[kind].chunk(0, 0)
    terms = distillation_loss(what.hidden, what.head, what.labels, teacher, Mix(name, hard_weight=0.1))
    assert terms.total == 0 and terms.hard.shape == (0,)
    assert all(values.isfinite().all() and not values.any() for values in all_of(what, terms))


class Made(NamedTuple):
    """A tensor that came out of an operation; the tensor itself is not kept, for that would change who owns it."""

    operation: str
    dtype: torch.dtype
    storage: int
    size: int


class Recorded(TorchDispatchMode):
    """Which operations ran, and what they made."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[Made] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for values in tree_leaves(out):
            if isinstance(values, torch.Tensor):
                storage = values.untyped_storage()
                size = storage.nbytes() // values.element_size()
                self.made.append(Made(str(func), values.dtype, storage.data_ptr(), size))
        return out

    @property
    def products(self) -> int:
        return sum(made.operation.startswith(("aten.mm", "aten.addmm")) for made in self.made)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_multiplied_for_a_gradient_nobody_wants(kind):
    what = case()
    teacher = None if kind == "sft" else teachers(torch.float64, 1.0)[kind]
    mix = Mix(hard_weight=0.1)
    wanted = distillation_loss(what.hidden, what.head, what.labels, teacher, mix, 4)
    chunks, teachers_own = 3, 3 if kind == "full" else 0
    with torch.no_grad(), Recorded() as seen:
        terms = distillation_loss(what.hidden, what.head, what.labels, teacher, mix, 4)
    assert seen.products == chunks + teachers_own
    assert not terms.total.requires_grad
    assert all(torch.allclose(a, b) for a, b in zip(terms, wanted, strict=True) if a is not None)

    what.head.weight.requires_grad_(False)  # as under LoRA
    with Recorded() as seen:
        terms = distillation_loss(what.hidden, what.head, what.labels, teacher, mix, 4)
        terms.total.backward()
    assert seen.products == 2 * chunks + teachers_own
    assert what.head.weight.grad is None and what.hidden.grad.any()


@pytest.mark.parametrize(("name", "kind"), POSSIBLE)
def test_nothing_larger_than_a_chunk_is_held(name, kind):
    targets, vocabulary, rows = 64, 400, 4
    what, known = case(targets=targets, rows=vocabulary, dtype=torch.float32), full(targets, vocabulary)
    known = Full(known.hidden.float(), Head(known.head.weight.float()), vocabulary)
    teacher = {"full": known, "top_k": top_k(known.logits(), 5), "samples": draw(known.logits(), 12), "sft": None}[kind]
    given = {tensor.untyped_storage().data_ptr() for tensor in (*what.inputs, known.hidden, known.head.weight)}
    with Recorded() as seen:
        terms = distillation_loss(what.hidden, what.head, what.labels, teacher, Mix(name, hard_weight=0.1), rows)
        (terms.total / 3).backward()
    new = [made for made in seen.made if made.storage not in given]
    weights = {made.storage for made in new if made.size == vocabulary * HIDDEN}
    assert weights == {what.head.weight.grad.data_ptr()}  # summed where it is needed, and copied nowhere
    largest = max(made.size for made in new if made.storage not in weights)
    assert largest == rows * vocabulary < targets * vocabulary


def test_a_head_tied_to_the_embedding_gets_both_gradients():
    what, tokens = case(), torch.randint(VOCABULARY, (TARGETS,))
    teacher, mix = teachers(torch.float64, 1.0)["top_k"], Mix(hard_weight=0.1)
    gradients = []
    for loss in (lambda hidden: naive_terms(what.head.logits(hidden), what.labels, teacher, mix),
                 lambda hidden: distillation_loss(hidden, what.head, what.labels, teacher, mix, 4)):  # fmt: skip
        hidden = torch.nn.functional.embedding(tokens, what.head.weight).tanh()
        gradients.append(torch.autograd.grad(loss(hidden).total, what.head.weight)[0])
    assert torch.allclose(*gradients)


def test_gradients_of_several_batches_add_up():
    what, once = case(), case()
    halves = [slice(0, 5), slice(5, TARGETS)]
    for half in halves:
        terms = distillation_loss(what.hidden[half], what.head, what.labels[half], None, SFT)
        (terms.total / TARGETS).backward()
    once.hidden, once.head, once.labels = what.hidden, what.head, what.labels
    expected = torch.autograd.grad(naive(once, None, SFT).total / TARGETS, what.inputs)
    for values, gradient in zip(what.inputs, expected, strict=True):
        assert torch.allclose(values.grad, gradient)


def test_a_second_backward_pass_is_refused_rather_than_wrong():
    what = case()
    total = distillation_loss(what.hidden, what.head, what.labels, None, SFT).total
    (2 * total).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="only once"):
        (2 * total).backward()


def test_draws_with_another_divergence_are_refused():
    what = case()
    with pytest.raises(ConfigError, match="reverse_kl cannot be estimated"):
        distillation_loss(
            what.hidden, what.head, what.labels, teachers(torch.float64, 1.0)["samples"], Mix("reverse_kl")
        )


@pytest.mark.parametrize(("kind", "k"), [("full", 5), ("top_k", 5), ("top_k", VOCABULARY), ("samples", 5)])
def test_a_broken_target_is_seen_and_breaks_no_other(kind, k):
    what = case()
    with torch.no_grad():
        what.hidden[7, 0] = float("nan")
    teacher = teachers(torch.float64, 1.0, k)[kind]
    terms = distillation_loss(what.hidden, what.head, what.labels, teacher, Mix(hard_weight=0.1), 4)
    for values in (terms.soft, terms.hard):
        assert values.isnan().nonzero().flatten().tolist() == [7]


def test_a_chunk_fits_its_bound_unless_it_has_the_least_number_of_targets():
    cpu = torch.device("cpu")
    for vocabulary, tensors in itertools.product((600, 49_152, 151_936), (1, 3, 8)):
        rows, row_bytes = fused.chunk_rows(vocabulary, cpu, tensors), vocabulary * 4 * tensors
        if rows > fused.LEAST_ROWS:
            assert rows * row_bytes <= fused.CHUNK_BYTES["cpu"]
        assert fused.CHUNK_BYTES["cpu"] < (rows + 1) * row_bytes
    assert fused.chunk_rows(10**9, cpu) == fused.LEAST_ROWS
