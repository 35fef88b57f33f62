"""How much of a set's accuracy is in its images, not in soft labels or augmentation (DD-Ranking, arXiv 2505.13300).

With accuracies in 0..1, as defined in the paper and at nus-hpc-ai-lab.github.io/DD-Ranking/introduction.html:

- hard label recovery HLR = real with hard labels - set with hard labels; less is better;
- improvement over random IOR = set - random images of the same number, both under the set's own protocol;
- label-robust score LRS = (e^a - e^-1) / (e - e^-1), a = w IOR - (1 - w) HLR, w = 1/2;
- augmentation-robust score ARS = the same of b = g (set - random, both augmented) + (1 - g) (set - random, both not),
  g = 1/2.

LRS and ARS are in 0..1, higher is better; ARS of random images is 0.27. Random images have class labels here: there is
no teacher to give them soft ones, so for a set with soft labels IOR holds what the labels add, and `soft_gain` tells
that part. Unlike in the public code no accuracy is the best of several looks at the test part.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import mean

from llmdistill.vision.config import Net
from llmdistill.vision.data import ImageData
from llmdistill.vision.dd.artefact import DistilledDataset
from llmdistill.vision.dd.evaluate import judge, with_class_labels
from llmdistill.vision.dd.protocol import Evaluation

Treatments = Mapping[str, Sequence[float]]
"""Test accuracies, one for each network, by how a set was trained on: `own`, `hard`, `plain` and `augmented`."""


def treatments(
    dataset: DistilledDataset, data: ImageData, net: Net, protocol: Evaluation, own: Sequence[float]
) -> dict[str, list[float]]:
    """Test accuracies of `protocol.other_nets` networks for each treatment; the own ones are taken as they are.

    `own` is the set's labels and the protocol's augmentation, `hard` class labels in place of soft ones, `plain` no
    augmentation, `augmented` that of the protocol, or that of DSA where it has none.

    Args:
        own: what `judge` has found by the protocol.
    """
    asked = protocol.others()
    found = {"own": list(own)}
    is_plain = protocol.augment == "none"
    for name, changed in {
        "hard": None if dataset.labels.ndim == 1 else (with_class_labels(dataset), asked),
        "plain": None if is_plain else (dataset, asked.model_copy(update={"augment": "none"})),
        "augmented": (dataset, asked.model_copy(update={"augment": "dsa"})) if is_plain else None,
    }.items():
        found[name] = list(own) if changed is None else judge(changed[0], data, net, changed[1]).test
    return found


def scores(its: Treatments, random: Treatments, real: float) -> dict[str, float]:
    """The scores above.

    Args:
        its: of all sets of a method at one size.
        random: of random images at this size.
        real: accuracy with the full data.
    """
    reached = {name: mean(its[name]) for name in ("own", "hard", "plain", "augmented")}
    over_random = {name: value - mean(random[name]) for name, value in reached.items()}
    recovery = real - reached["hard"]
    return {
        **reached,
        "hlr": recovery,
        "ior": over_random["own"],
        "lrs": normalised((over_random["own"] - recovery) / 2),
        "ars": normalised((over_random["augmented"] + over_random["plain"]) / 2),
        "soft_gain": reached["own"] - reached["hard"],
        "augmentation_gain": reached["augmented"] - reached["plain"],
    }


def normalised(score: float) -> float:
    """A number in -1..1 as one in 0..1."""
    return (math.exp(score) - math.exp(-1)) / (math.e - math.exp(-1))
