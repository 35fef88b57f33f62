"""Small real tokenizers for tests: other vocabularies, other ids, other ways of writing bytes as tokens."""

from __future__ import annotations

import json

from transformers import PreTrainedTokenizerFast

from tests.tiny import REPO, TEMPLATE

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MARKED = (
    "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
)
"""A template that writes no role; a token could begin before an answer that does not follow a control token."""

TEXTS = [
    json.loads(line)["prompt"]
    for name in ("self-instruct", "korean")
    for line in (REPO / "data" / name / "prompts.jsonl").read_text("utf-8").splitlines()
]


def byte_level(vocab_size: int, ids: dict[str, int] | None = None) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer; `ids` gives its tokens other ids."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=SPECIAL, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXTS, trainer)
    if ids:
        state = json.loads(tokenizer.to_str())
        state["model"]["vocab"] = {token: ids.get(token, id_) for token, id_ in state["model"]["vocab"].items()}
        tokenizer = Tokenizer.from_str(json.dumps(state))
    return _wrapped(tokenizer)


def byte_fallback(vocab_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer in SentencePiece's manner: a space before the text, bytes for letters it does not know."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<|endoftext|>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, limit_alphabet=70)
    tokenizer.train_from_iterator([text.split(" ")[0] for text in TEXTS] + TEXTS[:50], trainer)
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = state["added_tokens"][: len(SPECIAL)]
    return _wrapped(Tokenizer.from_str(json.dumps(state)), MARKED)


def _wrapped(tokenizer: object, template: str = TEMPLATE) -> PreTrainedTokenizerFast:
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>", unk_token="<|endoftext|>"
    )
    wrapped.chat_template = template
    return wrapped
