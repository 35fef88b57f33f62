"""Augmentations of a batch against a loop over its images written from their definition."""

from __future__ import annotations

import pytest
import torch

from llmdistill.vision.augment import augmented, crop, cutout, flip

SHAPES = [(40, 3, 16, 16), (40, 1, 28, 28), (40, 2, 8, 24)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images_of(shape: tuple[int, ...], channels_last: bool = False) -> torch.Tensor:
    images = torch.rand(shape, generator=generator(9)) + 1
    return images.contiguous(memory_format=torch.channels_last) if channels_last else images


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_crop_is_a_window_of_the_padded_image(shape: tuple[int, ...], channels_last: bool):
    images, height, width = images_of(shape, channels_last), shape[2], shape[3]
    pad, draws = height // 8, generator()
    tops = torch.randint(0, 2 * pad + 1, (shape[0],), generator=draws).tolist()
    lefts = torch.randint(0, 2 * pad + 1, (shape[0],), generator=draws).tolist()
    found = crop(images, generator())
    for image, top, left, cropped in zip(images, tops, lefts, found, strict=True):
        slow = torch.zeros_like(image)
        for row in range(height):
            for column in range(width):
                from_row, from_column = row + top - pad, column + left - pad
                if 0 <= from_row < height and 0 <= from_column < width:
                    slow[:, row, column] = image[:, from_row, from_column]
        assert torch.equal(cropped, slow)
    assert len(set(tops)) > 1 and len(set(lefts)) > 1


@pytest.mark.parametrize("shape", SHAPES)
def test_flip_mirrors_about_half_of_the_images_and_leaves_the_others(shape: tuple[int, ...]):
    images = images_of(shape)
    found = flip(images, generator())
    mirrored = [torch.equal(after, before.flip(-1)) for before, after in zip(images, found, strict=True)]
    kept = [torch.equal(after, before) for before, after in zip(images, found, strict=True)]
    assert [not one for one in mirrored] == kept
    assert 8 <= sum(mirrored) <= 32


@pytest.mark.parametrize("shape", SHAPES)
def test_cutout_sets_one_square_to_the_mean_and_nothing_else(shape: tuple[int, ...]):
    images, height, width = images_of(shape), shape[2], shape[3]
    draws = generator()
    rows = torch.randint(0, height, (shape[0], 1), generator=draws).flatten().tolist()
    columns = torch.randint(0, width, (shape[0], 1), generator=draws).flatten().tolist()
    for image, row, column, cut in zip(images, rows, columns, cutout(images, generator()), strict=True):
        slow = image.clone()
        for y in range(height):
            for x in range(width):
                if abs(y - row) < height // 4 and abs(x - column) < height // 4:
                    slow[:, y, x] = 0
        assert torch.equal(cut, slow)


def test_operations_are_applied_in_their_order():
    images = images_of(SHAPES[0])
    one = generator(5)
    expected = cutout(crop(flip(images, one), one), one)
    assert torch.equal(augmented(images, ("flip", "crop", "cutout"), generator(5)), expected)
    assert torch.equal(augmented(images, (), generator(5)), images)


def test_the_images_and_the_global_generator_are_left_as_they_were():
    images, state = images_of(SHAPES[0]), torch.get_rng_state()
    before = images.clone()
    one = augmented(images, ("crop", "flip", "cutout"), generator())
    torch.rand(3)
    again = augmented(images, ("crop", "flip", "cutout"), generator())
    torch.set_rng_state(state)
    augmented(images, ("crop", "flip", "cutout"), generator(1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one, again) and torch.equal(images, before)


def test_an_image_of_one_pixel_and_a_batch_of_one_pass():
    for shape in ((3, 1, 1, 1), (1, 3, 8, 8)):
        assert augmented(torch.rand(shape), ("crop", "flip", "cutout"), generator()).shape == shape
