"""Tokens that a config adds to those of a model: checked, put into its tokenizer as special tokens, each one id.

What is left out: rows of embedding and head, which are the worker's; and words that are no special tokens (a special token is
never split, never normalised, and never merged with the text around it).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from engine.errors import InputError

WHERE = "chat.add_tokens"
_FILE, _SETTINGS, _OLD_LIST = "tokenizer.json", "tokenizer_config.json", "added_tokens.json"


@dataclass(frozen=True, slots=True)
class Added:
    """One such token: its id, and the ids of the pieces that its text was before."""

    text: str
    id: int
    pieces: tuple[int, ...]


def add(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[Added, ...]:
    """Add the texts to the tokenizer, in place, with ids that follow on its last. InputError for a text that is blank, given
    twice, or one token already."""
    for number, text in enumerate(texts):
        if not text.strip():
            raise InputError(
                f"{text!r} is no token", where=WHERE, remedy='name tokens as they stand in the text, such as "<plan>"'
            )
        if text in texts[:number]:
            raise InputError(f"{text!r} is given twice", where=WHERE, remedy="name each token once")
    pieces = {text: tuple(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts}
    for text, ids in pieces.items():
        known = tokenizer.token_to_id(text) if len(ids) != 1 else ids[0]
        if known is not None:
            what = f"{text!r} is one token of the model already (id {known}): it needs no adding"
            raise InputError(what, where=WHERE, remedy="leave it out; the model reads and writes it as it is")
        if not ids:
            raise InputError(f"the model's tokenizer makes nothing of {text!r}", where=WHERE, remedy="take another text")
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in texts])
    made: list[Added] = []
    for text in texts:
        found = tokenizer.encode(text, add_special_tokens=False).ids
        if len(found) != 1 or (made and found[0] != made[-1].id + 1):
            raise no_place(text)
        made.append(Added(text, found[0], pieces[text]))
    return tuple(made)


def no_place(text: str) -> InputError:
    """The refusal of a tokenizer that does not read an added token as one."""
    what = f"the model's tokenizer does not take {text!r} as one more token"
    return InputError(what, where=WHERE, remedy="take another text, or leave it out: it is then read in pieces")


def write_tokenizer(source: Path, folder: Path, texts: Sequence[str]) -> tuple[Added, ...]:
    """Write the tokenizer of the model folder `source` with the texts added into `folder`: tokenizer.json, and the older files
    that list added tokens where the source has them. Raises InputError as `add`, and OSError where the disk does."""
    tokenizer = Tokenizer.from_file(str(source / _FILE))
    made = add(tokenizer, texts)
    tokenizer.save(str(folder / _FILE))
    entries = {entry["id"]: entry for entry in json.loads((folder / _FILE).read_text(encoding="utf-8"))["added_tokens"]}
    for name in (_SETTINGS, _OLD_LIST):
        if not (source / name).is_file():
            continue
        tree: dict[str, Any] = json.loads((source / name).read_text(encoding="utf-8"))
        if name == _OLD_LIST:
            tree |= {each.text: each.id for each in made}
        elif "added_tokens_decoder" in tree:
            described = {str(each.id): {k: v for k, v in entries[each.id].items() if k != "id"} for each in made}
            tree["added_tokens_decoder"] = tree["added_tokens_decoder"] | described
        (folder / name).write_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return made
