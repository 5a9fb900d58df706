"""Rows of plain text: no chat, no template, nothing but the text as its tokenizer encodes it.

What is left out: parting a text that is over the limits (it is left out and counted), and joining short ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.data.targets import ChatEncoder


def text_tokens(chat: ChatEncoder, text: str) -> tuple[list[int], list[int]]:
    """Ids and mask of the text's one training row: its tokens with the special ones that the tokenizer puts around a text by
    itself, and the token that ends it, where it does not end so already. Every token is a target (1) but the first, which
    nothing predicts."""
    ids = chat.encode(text, special=True)
    if chat.eos_id is not None and ids[-1:] != [chat.eos_id]:
        ids.append(chat.eos_id)
    return ids, [int(place > 0) for place in range(len(ids))]
