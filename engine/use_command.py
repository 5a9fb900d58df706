"""How a command line carries what a config says of chats: the options of mlx_lm.generate, and what it has none for."""

from __future__ import annotations

import json

from engine.sections import ChatConfig


def chat_options(chat: ChatConfig) -> list[str]:
    """mlx_lm.generate's options for the chat template's variables and the further stop tokens."""
    variables = ["--chat-template-config", json.dumps(chat.variables)] if chat.variables else []
    return [*variables, *(["--extra-eos-token", *chat.stop] if chat.stop else [])]


def has_no_option(chat: ChatConfig) -> bool:
    """Whether mlx_lm.generate would render chats, or stop, in another way than the run, whatever its options: it takes no chat
    template and no added tokens, and a stop token that is a number is an id to it."""
    strange = any(text.startswith("-") or text.strip().isdecimal() for text in chat.stop)
    return chat.template is not None or bool(chat.add_tokens) or strange
