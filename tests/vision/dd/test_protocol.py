"""A protocol of evaluation is frozen, has a name or all of its fields, and a hash that stands for all of them."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from llmdistill.vision.config import Data, Net
from llmdistill.vision.dd.protocol import PROTOCOLS, Evaluation

OTHER: dict[str, Any] = {
    "epochs": 3,
    "batch_size": 7,
    "learning_rates": (0.5,),
    "learned_rate": True,
    "momentum": 0.5,
    "weight_decay": 0.0,
    "drop_at": 0.9,
    "augment": "dsa",
    "strategy": ("color", "crop"),
    "nets": 3,
    "grid_nets": 1,
    "other_nets": 1,
    "validation_images": 5,
    "full_steps": 9,
    "seed": 4,
}


def hashed(evaluation: Evaluation) -> str:
    return evaluation.hash(Data(), Net())


def test_every_field_changes_the_hash():
    hashes = [hashed(Evaluation(**{name: value})) for name, value in OTHER.items()]
    assert len({hashed(Evaluation()), *hashes}) == 1 + len(OTHER)
    assert OTHER.keys() == Evaluation.model_fields.keys() - {"protocol"}


def test_the_data_their_whitening_and_the_network_change_the_hash():
    plain = Evaluation()
    found = [
        plain.hash(Data(), Net()),
        plain.hash(Data(validation=0.3), Net()),
        plain.hash(Data(), Net(norm="batch")),
        plain.hash(Data(), Net(), zca=True),
    ]
    assert len(set(found)) == 4


def test_the_hash_is_that_of_the_numbers_whatever_they_are_called():
    written_out = {name: value for name, value in Evaluation(protocol="dsa").model_dump().items() if name != "protocol"}
    assert hashed(Evaluation(**written_out)) == hashed(Evaluation(protocol="dsa")) == hashed(Evaluation(protocol="dm"))


def test_the_protocols_of_the_papers_are_those_of_their_code():
    dc, on_mnist, dsa, mtt = (Evaluation(protocol=name) for name in ("dc", "dc_mnist", "dsa", "mtt"))
    assert (dc.epochs, dc.learning_rates, dc.momentum, dc.weight_decay, dc.batch_size) == (300, (0.01,), 0.9, 5e-4, 256)
    assert (dc.drop_at, dc.augment, dc.nets) == (0.5, "none", 20)
    assert (on_mnist.epochs, on_mnist.augment) == (1000, "crop_scale_rotate")
    assert (dsa.epochs, dsa.augment, dsa.strategy) == (
        1000,
        "dsa",
        ("color", "crop", "cutout", "flip", "scale", "rotate"),
    )
    assert mtt.learned_rate and mtt.nets == 5 and Evaluation(protocol="tesla").nets == 3


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_named_protocol_is_what_it_is_after_it_was_written_down(name: str):
    found = Evaluation.model_validate({"protocol": name})
    assert Evaluation.model_validate(found.model_dump(mode="json")) == found and found.title == name


def test_a_field_beside_the_name_wins_and_the_title_tells():
    found = Evaluation(protocol="dsa", nets=2, epochs=1000)
    assert (found.nets, found.augment) == (2, "dsa")
    assert found.title == "dsa with other nets"
    assert hashed(found) != hashed(Evaluation(protocol="dsa"))


def test_a_protocol_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        Evaluation().epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"protocol": "규약"}, "there is no protocol '규약', there are common, dc, dc_mnist, dsa"),
        ({"protocol": ["dsa"]}, "there is no protocol"),
        ({"learning_rates": []}, "at least 1"),
        ({"learning_rates": [0.1, 0.1]}, "stands there twice"),
        ({"learning_rates": [0.0]}, "greater than 0"),
        ({"strategy": ["mixup"]}, "Input should be"),
        ({"nets": True}, "not a switch"),
        ({"epoch": 3}, "Extra inputs"),
    ],
)
def test_a_protocol_that_cannot_be_followed_is_refused(settings: dict[str, Any], told: str):
    with pytest.raises(ValidationError, match=told):
        Evaluation.model_validate(settings)
