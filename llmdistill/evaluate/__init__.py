"""Student against teacher and against its untrained self, on held-out prompts that no stage saw.

`measure` turns logits into numbers; `stage` asks the three models and compares.
"""
