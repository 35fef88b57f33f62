"""Distillation losses: pure functions of tensors, per target token, in nats.

`dense` has the divergences over full logits, `sparse` those over the k likeliest tokens or samples, `uld` one for
models without common tokens, and `mix` the sum of soft and hard terms that training asks for. `fused` computes it from
hidden states in chunks with its gradient, which `gradients` has in closed form for the terms used most. What to
sum and by what to divide is the caller's business, because only the caller knows how many target tokens there
are in all micro-batches of all processes.
"""
