"""How far a student is from its teacher before any training, by the rule that chose its layers.

    python -m tests.bench.layer_rules pipelines/quickstart.yaml --keep 25 20 15 10

Needs the quickstart's `evaluate` stage: KL and agreement are over the teacher's
own answers to the held-out prompts; layers are chosen on the curated records.
"""

from __future__ import annotations

import argparse

import torch

from llmdistill.engines.aligned import align, target_logits
from llmdistill.engines.examples import encode_all
from llmdistill.engines.models import end_token_ids, load_model, load_tokenizer
from llmdistill.engines.resume import find
from llmdistill.evaluate.measure import distances, weigh
from llmdistill.pipeline_file import load_pipeline
from llmdistill.run.stage import part_paths, read_records
from llmdistill.train.stage import CALIBRATION
from llmdistill.train.student import RULES, choose_layers, with_layers


def main() -> None:
    """Print one row per number of layers kept."""
    parser = argparse.ArgumentParser()
    parser.add_argument("pipeline")
    parser.add_argument("--keep", type=int, nargs="+", default=[25, 20, 15, 10])
    parser.add_argument("--limit", type=int, default=16)
    options = parser.parse_args()
    pipeline = load_pipeline(options.pipeline)
    source = find(pipeline.teacher)
    model, tokenizer = load_model(source), load_tokenizer(source)
    ends = end_token_ids(tokenizer, model.generation_config)
    curated = [record for path in part_paths(pipeline.run_path / "curate") for record in read_records(path)]
    held_out = [record for path in part_paths(pipeline.run_path / "evaluate") for record in read_records(path)]
    chosen_on, _ = encode_all(curated[:CALIBRATION], tokenizer, ends, 1024)
    measured_on, _ = encode_all(held_out[: options.limit], tokenizer, ends, 1024)
    batches = [align([e.prompt], [e.target], tokenizer.pad_token_id) for e in measured_on]
    with torch.inference_mode():
        teacher = [target_logits(model, batch)[0] for batch in batches]
    print("| layers kept | " + " | ".join(RULES) + " |")
    print("|---" * (len(RULES) + 1) + "|")
    calibration = align([e.prompt for e in chosen_on], [e.target for e in chosen_on], tokenizer.pad_token_id)
    for keep in options.keep:
        cells = []
        for rule in RULES:
            student = with_layers(model, choose_layers(model, keep, rule, calibration))
            with torch.inference_mode():
                sums = [
                    distances(target_logits(student, batch)[0], reference, batch.labels[0])
                    for batch, reference in zip(batches, teacher, strict=True)
                ]
            kl, top1 = weigh(sums, "kl"), weigh(sums, "top1")
            cells.append(f"{kl['mean']:.2f} / {top1['mean']:.0%}")
        print(f"| {keep} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
