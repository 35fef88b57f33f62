"""The student: how it is made, what it is trained on, and by which loss.

`student` builds it, `examples` turns records into token ids and masks (the one
way to mask a loss), `losses` are pure functions, `sft` and `kd` wire them into
trainers, `checkpoints` says which one to resume from, `stage` is the verb.
"""
