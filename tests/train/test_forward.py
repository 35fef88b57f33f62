"""The loss inside the student's forward: under DDP, under FSDP2, under autocast."""

from __future__ import annotations

import multiprocessing
import socket

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import TrainingArguments

from llmdistill.train.arguments import common_arguments
from tests.tiny import save_tiny_model
from tests.train import shards
from tests.train.following import Setting, follow, online, relative_error


def test_several_processes_get_the_gradient_of_all_their_examples():
    """Also where the output layer is a shard that no hook has gathered."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    ranks = range(shards.PROCESSES)
    processes = [context.Process(target=shards.work, args=(rank, port, results), daemon=True) for rank in ranks]
    for process in processes:
        process.start()
    worst = results.get(timeout=240)
    for process in processes:
        process.join(60)
    assert tuple(worst) == shards.LAYOUTS
    assert max(worst.values()) <= 1e-5, worst


@pytest.fixture
def accelerator_state():
    """Accelerate keeps the precision of the first trainer of a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("packing", [False, True])
def test_autocast_reaches_the_decoder_and_the_loss(tiny_model, tmp_path, accelerator_state, packing):
    small = save_tiny_model(tmp_path / "student", num_layers=2, seed=1)
    training = Setting(small, online(tiny_model), tmp_path / "run")
    exact = training.kd(packing=packing, epochs=1)
    one = follow(exact)
    AcceleratorState._reset_state(reset_partial_state=True)
    arguments = {**common_arguments(exact.share, tmp_path / "run", 3), "bf16": True}
    rounded = type(exact)(
        training.kd(packing=packing).model,
        args=TrainingArguments(**arguments),
        train_dataset=training.examples,
        data_collator=exact.data_collator,
        teacher=training.teacher,
        settings=exact.share,
        share=exact.share,
    )
    two = follow(rounded)
    for name in ("lm_head.weight", "model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"):
        if name in one.gradients[0]:
            assert 1e-4 < relative_error(one.gradients[0][name], two.gradients[0][name]) < 5e-2
    assert all(gradient.dtype == torch.float32 for gradient in two.gradients[0].values())
    assert two.losses == pytest.approx(one.losses, rel=1e-2)
