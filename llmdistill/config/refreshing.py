"""How a run is refreshed, when, and on which machines its shards are worked on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llmdistill.config.base import Execution, Fraction, NotNegative, Positive, Settings
from llmdistill.config.training import Budget


class Gate(Settings):
    """When a new student takes the champion's place: where it is not worse by more than `margin`.

    Both answer the same held-out prompts; of the paired differences the end of the interval that speaks against the
    new student decides (non-inferiority), at `confidence`. `measure` None takes `accuracy` where `filter.verify` can
    check held-out references, else `human_text_ce` where the held-out prompts have references, else
    `teacher_text_ce`; each only where at least `min_records` prompts can be compared. `margin` is in the measure's
    unit: a share for `accuracy` and `top1`, nats per token else; None is 0.02 and 0.05. Fewer than `min_records`
    prompts are refused; to tell a share within 0.02 where two students differ on one prompt in ten takes about 1,000.
    """

    measure: Literal["accuracy", "human_text_ce", "teacher_text_ce", "teacher_text_kl", "teacher_text_top1"] | None = (
        None
    )
    margin: NotNegative | None = None
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
    min_records: Positive = 20


class Refresh(Settings):
    """What `llmdistill refresh` makes of what is new since the last version.

    `student: restart` trains from the untrained student, `continue` goes on from the champion, with `learning_rate`
    and `epochs` in place of train's where they are set. Fewer than `min_new` new prompts wait for more. `min_real` is
    the least share of the training set whose answers no model wrote, or whose prompts a person wrote when all
    answers are a model's. `max_generation` is how many models may have learned from each other: 1 is a student of a
    teacher that is nobody's student. `rejudged` old answers are judged once more, to see whether the judge moved; 0
    asks none. `budget` is that of one refresh; None is the pipeline's.
    """

    student: Literal["restart", "continue"] = "restart"
    learning_rate: Annotated[float | None, Field(gt=0.0)] = None
    epochs: Annotated[float | None, Field(gt=0.0)] = None
    min_new: Positive = 1
    min_real: Fraction = 0.0
    max_generation: Positive = 1
    rejudged: int = Field(default=50, ge=0)
    gate: Gate = Gate()
    budget: Budget | None = None


class Schedule(Settings):
    """When the refresh runs. `cron` has five fields: minute, hour, day of the month, month, day of the week.

    `webhook_env` names the environment variable that holds an address to which the outcome of each refresh is
    posted.
    """

    cron: str = "0 3 * * 1"
    timezone: str | None = None
    webhook_env: str | None = None


class Run(Settings):
    """Where shards are worked on; no setting here changes a result.

    `executor: ray` sends the shards of `generate` and `filter`, and the pieces of embeddings and signatures, to a Ray
    cluster: that at `ray_address` (host:port), or one on this machine that nobody else reaches. Each worker takes
    `num_cpus` and `num_gpus` and loads its own model; there are `num_workers` of them, None is as many as fit. The
    limits of an `api` hold for each worker; a `budget` needs `executor: local`. `storage` is a folder that all nodes
    reach, as a path or an address that fsspec knows (s3://, gs://); None is the run directory itself, on a disk they
    share, where a shard that was lost half-way goes on and is not begun again.
    """

    executor: Annotated[Literal["local", "ray"], Execution] = "local"
    ray_address: Annotated[str | None, Execution] = None
    num_workers: Annotated[Positive | None, Execution] = None
    num_cpus: Annotated[float, Field(gt=0.0), Execution] = 1.0
    num_gpus: Annotated[NotNegative, Execution] = 0.0
    storage: Annotated[str | None, Execution] = None
