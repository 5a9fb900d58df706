"""Chat templates of several families and a small real tokenizer for each, without weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors, trainers

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Llama 3: contents are trimmed, the turn ends in <|eot_id|> and nothing follows it.
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' }}"
    "{{ m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
# As Qwen3: the thinking of replies before the last question is taken out, and the last reply always has some.
THINKING = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}"
    "{% endfor %}{% for m in messages %}{% set text = m.content.split('</think>')[-1].lstrip('\\n') %}"
    "{% if m.role == 'assistant' and loop.index0 > ns.last and '</think>' in m.content %}{% set text = m.content %}"
    "{% elif m.role == 'assistant' and loop.index0 > ns.last %}{% set text = '<think>\\n\\n</think>\\n\\n' + text %}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\\n' + text + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}"
)
# No token ends a reply: one is appended, which the template would not write inside a chat.
WORDS = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
# Llama 3's cut, which Qwen has too: line ends stay together, whatever follows them.
_CUT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class Family:
    """A template with the tokens that it needs."""

    template: str | None
    end: str  # the tokenizer's end of sequence
    stops: tuple[str, ...] = ()  # further stop tokens, which generation_config.json names
    thinks: bool = False


FAMILIES = {
    "chatml": Family(CHATML, "<|im_end|>"),
    "llama3": Family(LLAMA3, "<|end_of_text|>", ("<|end_of_text|>", "<|eot_id|>")),
    "thinking": Family(THINKING, "<|im_end|>", thinks=True),
    "unthinking": Family(THINKING, "<|im_end|>"),  # asked for no thinking, since there are no tokens for it
    "words": Family(WORDS, "<|im_end|>"),
    "none": Family(None, "<|end_of_text|>"),
}
_SPECIAL = ("<s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>")
_TEXT = ["What is 2+2?\n\nThe system and the user and the assistant: \n\n", "assistant: Yes, no.\n\n\n"]


def write_family(folder: Path, name: str) -> Path:
    """A model folder without weights: bytes with merges (two line ends become one token), a BOS token around bare texts."""
    family = FAMILIES[name]
    folder.mkdir(parents=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_CUT), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.train_from_iterator(
        _TEXT * 4,
        trainers.BpeTrainer(
            vocab_size=330,
            special_tokens=list(_SPECIAL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if family.thinks:
        tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": family.end}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    end = tokenizer.token_to_id(family.end)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": end}))
    if family.stops:
        stops = {"eos_token_id": [tokenizer.token_to_id(stop) for stop in family.stops]}
        (folder / "generation_config.json").write_text(json.dumps(stops))
    if family.template is not None:
        (folder / "chat_template.jinja").write_text(family.template)
    return folder
