"""The embedded model's tokenizer: byte-level BPE of 1,024 tokens, numbers split into pairs of digits."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VOCABULARY = 1024
BOS, USER, ASSISTANT, END = SPECIAL = ("<|bos|>", "<|user|>", "<|assistant|>", "<|end|>")
# a space belongs to the word after it; numbers are pairs of digits from the left, " 1732" is " ", "17", "32"
PIECES = r" ?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' "
    "}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str], n_ctx: int = 256) -> PreTrainedTokenizerFast:
    """Learn the merges from texts. `<|end|>` also ends generation and pads; BOS is put first by the
    tokenizer itself.

    Each pair of digits, 00 to 99, is one token: numbers are added to the texts until it is.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    between = (piece for text in texts for piece in re.split("|".join(map(re.escape, SPECIAL)), text))
    tokenizer.train_from_iterator(itertools.chain(between, _numbers()), trainer)
    assert all(f"{n:02}" in tokenizer.get_vocab() for n in range(100)), "every pair of digits must be a token"
    bos = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bos)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=END,
        pad_token=END,
        additional_special_tokens=[USER, ASSISTANT],
        model_max_length=n_ctx,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
        name_or_path="saelab-embedded",
    )


def _numbers() -> Iterator[str]:
    line = " ".join(f"{n:02}" for n in range(100))
    return itertools.repeat(line, 20_000)
