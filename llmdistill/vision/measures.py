"""What can be measured of any trained network beside its accuracy, by name."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from llmdistill.errors import ConfigError
from llmdistill.vision.attacks import Attack, fgsm_attack, robust_accuracy
from llmdistill.vision.data import ImageData
from llmdistill.vision.deploy import BATCH, latencies, num_bytes

MEASURES = ("fgsm", "pgd", "bytes", "latency")


def measures_of(net: nn.Module, data: ImageData, names: Sequence[str], attack: Attack) -> dict[str, float]:
    """The named measures of a network on the device that the data is on.

    `fgsm` and `pgd` are accuracies (0 to 1) on attacked test images: one step of the attack's `eps`, and `attack`.
    `bytes` is the size of its file. `latency` is the median time of one image in milliseconds; with it comes
    `latency_64`, of a batch of 64.

    Raises:
        ConfigError: there is no such measure.
    """
    found: dict[str, float] = {}
    for name in names:
        if name == "fgsm":
            found[name] = robust_accuracy(net, data.test, data, fgsm_attack(attack.eps))
        elif name == "pgd":
            found[name] = robust_accuracy(net, data.test, data, attack)
        elif name == "bytes":
            found[name] = float(num_bytes(net))
        elif name == "latency":
            found[name] = latencies([net], data.train.images[:1], 1)[0]
            found[f"latency_{BATCH}"] = latencies([net], data.train.images[:BATCH], BATCH)[0]
        else:
            raise ConfigError(f"there is no measure {name!r}", where="measure", do=f"there are {', '.join(MEASURES)}")
    return found
