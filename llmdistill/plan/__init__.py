"""What a run would do: records, requests, tokens, money, disk and time, without doing it.

Nothing is fetched and nothing is written, unless a sample of answers is asked for. Tokens and money come
from the teacher's answers where there are some, else they are upper bounds; what cannot be known is unknown.
"""

from __future__ import annotations

from llmdistill.plan.make import Plan, make_plan
from llmdistill.plan.preflight import Warning
from llmdistill.plan.steps import Step

__all__ = ["Plan", "Step", "Warning", "make_plan"]
