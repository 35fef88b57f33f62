"""Siamese augmentation against slow definitions of each operation, pixel by pixel, and finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from llmdistill.vision.dd.siamese import STRATEGY, Drawn, Operation, Ranges, draw, transformed

RANGES = Ranges()
IMAGES = torch.randn(4, 3, 9, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Numbers = tuple[float, float, float]


def drawn(operation: Operation, *rows: Numbers) -> Drawn:
    return Drawn(operation, torch.tensor(rows, dtype=torch.float64))


def color(image: torch.Tensor, numbers: Numbers) -> torch.Tensor:
    made = image + (numbers[0] - 0.5)
    grey = sum(made[channel] for channel in range(len(made))) / len(made)
    made = torch.stack([grey + 2 * numbers[1] * (one - grey) for one in made])
    return made.mean() + (0.5 + numbers[2]) * (made - made.mean())


def moved(image: torch.Tensor, down: int, right: int) -> torch.Tensor:
    made = torch.zeros_like(image)
    _, height, width = image.shape
    for row in range(height):
        for column in range(width):
            if 0 <= row + down < height and 0 <= column + right < width:
                made[:, row, column] = image[:, row + down, column + right]
    return made


def crop(image: torch.Tensor, numbers: Numbers) -> torch.Tensor:
    most = [math.floor(side / 8 + 0.5) for side in image.shape[1:]]
    down, right = (math.floor(number * (2 * far + 1)) - far for number, far in zip(numbers[:2], most, strict=True))
    return moved(image, down, right)


def cutout(image: torch.Tensor, numbers: Numbers) -> torch.Tensor:
    made = image.clone()
    _, height, width = image.shape
    tall, wide = math.floor(height / 2 + 0.5), math.floor(width / 2 + 0.5)
    top = math.floor(numbers[0] * (height + (1 - tall % 2))) - tall // 2
    left = math.floor(numbers[1] * (width + (1 - wide % 2))) - wide // 2
    for row in range(top, top + tall):
        for column in range(left, left + wide):
            if 0 <= row < height and 0 <= column < width:
                made[:, row, column] = 0
    return made


def flip(image: torch.Tensor, numbers: Numbers) -> torch.Tensor:
    return image[:, :, list(range(image.shape[2] - 1, -1, -1))] if numbers[0] < 0.5 else image


def looked_up(image: torch.Tensor, source: Callable[[float, float], tuple[float, float]]) -> torch.Tensor:
    """Bilinear, zeros outside; `source` maps (x, y) in -1..1, pixel centres at odd multiples of half a pixel."""
    _, height, width = image.shape
    made = torch.zeros_like(image)
    for row in range(height):
        for column in range(width):
            x, y = source((2 * column + 1) / width - 1, (2 * row + 1) / height - 1)
            at_x, at_y = ((x + 1) * width - 1) / 2, ((y + 1) * height - 1) / 2
            for i in (math.floor(at_y), math.floor(at_y) + 1):
                for j in (math.floor(at_x), math.floor(at_x) + 1):
                    if 0 <= i < height and 0 <= j < width:
                        made[:, row, column] += image[:, i, j] * (1 - abs(at_y - i)) * (1 - abs(at_x - j))
    return made


def scale(image: torch.Tensor, numbers: Numbers) -> torch.Tensor:
    wide, tall = (1 / 1.2 + number * (1.2 - 1 / 1.2) for number in numbers[:2])
    return looked_up(image, lambda x, y: (wide * x, tall * y))


def rotate(image: torch.Tensor, numbers: Numbers) -> torch.Tensor:
    angle = math.pi / 12 * (2 * numbers[0] - 1)
    cosine, sine = math.cos(angle), math.sin(angle)
    return looked_up(image, lambda x, y: (cosine * x - sine * y, sine * x + cosine * y))


SLOW = {"color": color, "crop": crop, "cutout": cutout, "flip": flip, "scale": scale, "rotate": rotate}
NUMBERS = [(0.0, 0.0, 0.0), (0.999999, 0.9999, 0.99), (0.31, 0.72, 0.14), (0.55, 0.21, 0.8)]


@pytest.mark.parametrize("operation", STRATEGY)
def test_each_operation_is_what_its_definition_says_for_each_image_by_itself(operation: Operation) -> None:
    made = transformed(IMAGES, drawn(operation, *NUMBERS))
    expected = torch.stack([SLOW[operation](*pair) for pair in zip(IMAGES, NUMBERS, strict=True)])
    torch.testing.assert_close(made, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("operation", STRATEGY)
def test_one_drawing_changes_all_images_of_a_batch_alike(operation: Operation) -> None:
    for numbers in NUMBERS:
        expected = torch.stack([SLOW[operation](image, numbers) for image in IMAGES])
        torch.testing.assert_close(transformed(IMAGES, drawn(operation, numbers)), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("operation", STRATEGY)
def test_gradients_are_those_of_finite_differences(operation: Operation) -> None:
    some = IMAGES[:2, :, :5, :4].clone().requires_grad_()
    for change in (drawn(operation, NUMBERS[2]), drawn(operation, *NUMBERS[:2])):
        assert torch.autograd.gradcheck(lambda images, change=change: transformed(images, change), some)


def test_an_image_that_is_in_two_batches_of_different_sizes_comes_out_equal() -> None:
    generator = torch.Generator().manual_seed(3)
    others = torch.randn(6, 3, 9, 8, generator=generator, dtype=torch.float64)
    for _ in range(30):
        change = draw(generator, STRATEGY)
        one, other = transformed(torch.cat([others, IMAGES[:1]]), change), transformed(IMAGES[:1], change)
        assert torch.equal(one[-1], other[0])


@pytest.mark.parametrize(
    ("operation", "numbers"),
    [
        ("color", (0.5, 0.5, 0.5)),
        ("crop", (0.5, 0.5, 0.0)),
        ("flip", (0.5, 0.0, 0.0)),
        ("scale", ((1 - 1 / 1.2) / (1.2 - 1 / 1.2), (1 - 1 / 1.2) / (1.2 - 1 / 1.2), 0.0)),
        ("rotate", (0.5, 0.0, 0.0)),
    ],
)
def test_the_middle_of_its_range_leaves_images_as_they_are(operation: Operation, numbers: Numbers) -> None:
    torch.testing.assert_close(transformed(IMAGES, drawn(operation, numbers)), IMAGES, rtol=1e-9, atol=1e-9)


def test_a_single_channel_has_no_saturation() -> None:
    grey = IMAGES[:, :1]
    torch.testing.assert_close(transformed(grey, drawn("color", (0.5, 0.0, 0.5))), grey)


def test_every_operation_of_the_strategy_is_drawn_and_no_other() -> None:
    generator = torch.Generator().manual_seed(0)
    strategy: tuple[Operation, ...] = ("crop", "scale", "rotate")
    names = [draw(generator, strategy).operation for _ in range(300)]
    assert set(names) == set(strategy)
    assert min(names.count(name) for name in strategy) > 60


def test_numbers_for_each_image_differ() -> None:
    assert len(set(draw(torch.Generator(), STRATEGY, 50).numbers[:, 0].tolist())) > 45


def test_the_largest_number_that_can_be_drawn_stays_in_the_image() -> None:
    almost_one = torch.full((1, 3), 1 - 2**-24)
    images = torch.ones(1, 1, 32, 32)
    shifted = transformed(images, Drawn("crop", almost_one))
    assert shifted[0, 0, :-4, :-4].eq(1).all()
    assert shifted.sum() == 28 * 28
    assert transformed(images, Drawn("cutout", almost_one)).sum() == 32 * 32 - 8 * 8


def test_an_empty_strategy_changes_nothing_and_draws_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert torch.equal(transformed(IMAGES, draw(generator, ())), IMAGES)
    assert torch.equal(generator.get_state(), before)


def test_the_same_state_draws_the_same_and_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    changes = [[draw(torch.Generator().manual_seed(seed), STRATEGY, 4) for seed in range(20)] for _ in range(2)]
    for one, other in zip(*changes, strict=True):
        assert torch.equal(transformed(IMAGES, one), transformed(IMAGES, other))
    assert torch.equal(torch.get_rng_state(), before)
