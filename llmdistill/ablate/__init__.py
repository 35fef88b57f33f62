"""Ablation: the same student trained under each variant of the settings and each seed, and measured side by side.

    <run>/ablation/table.json             the result so far
    <run>/ablation/<variant>-<seed>/      a run directory of its own for each training
    <run>/ablation/untrained/             the student before training, where the run has to make one, and its measure

The stages up to `filter` are those of the run itself, as hard links, so nothing is asked twice.
"""
