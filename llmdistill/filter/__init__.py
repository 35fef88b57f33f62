"""Which answers are good enough.

`checks` are plain rules about an answer's form; `judge` is an LLM with a rubric.
Every record that leaves here without being kept carries the reason.
"""
