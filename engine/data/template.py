"""Renders chats and counts tokens as transformers does, from tokenizer.json and the model's Jinja chat template alone.

Templates come from strangers: they run in Jinja's immutable sandbox and see plain strings, lists and dicts only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
from tokenizers import Tokenizer

from engine.config import ChatConfig
from engine.data import added_tokens
from engine.errors import InputError
from engine.types import Message

MODELS_OWN = ChatConfig()
# What a template raises on turns that it was not written for: its own refusals, and plain mistakes such as an index too far.
REFUSALS = (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError)
# Tokens around a model's thinking: mlx_lm asks templates of models that have them for thinking, and others for none.
_THINKING = (
    ("<think>", "</think>"),
    ("<longcat_think>", "</longcat_think>"),
    ("<|think:start|>", "<|think:end|>"),
    ("<|channel>", "<channel|>"),
    ("<|open|>", "<|close|>"),
)


class ChatTokenizer:
    """Tokenizer and chat template of a model folder.

    The template is chat_template.jinja, else `chat_template` in tokenizer_config.json (of several the one called
    default). A folder without one gives plain concatenation: the turns' contents, one after the other, with neither
    roles nor anything between them. InputError for a folder without a readable tokenizer.json or with a broken template.
    """

    def __init__(self, folder: Path, chat: ChatConfig = MODELS_OWN) -> None:
        self.folder = folder
        self._variables = chat.variables
        self._tokenizer = _read_tokenizer(folder)
        if chat.add_tokens:
            added_tokens.add(self._tokenizer, chat.add_tokens)
        config = _read_json(folder / "tokenizer_config.json")
        self._special = _special_tokens({**_read_json(folder / "special_tokens_map.json"), **config})
        self.source = template_source(folder, chat.template)
        source = self.source
        self._template = None if source is None else _compile(source, folder)
        token_id = self._tokenizer.token_to_id
        self._thinks = any(token_id(start) is not None and token_id(end) is not None for start, end in _THINKING)
        self.eos_id: int | None = token_id(self._special["eos_token"]) if "eos_token" in self._special else None
        self.stop_ids = _stop_ids(folder) | ({self.eos_id} if self.eos_id is not None else set())
        self.stop_ids |= {stop_id(text, token_id) for text in chat.stop}

    @property
    def has_template(self) -> bool:
        """Whether the folder has a chat template."""
        return self._template is not None

    def render(self, messages: Sequence[Message], add_generation_prompt: bool, **variables: Any) -> str:
        """The chat as text, ending in the assistant's header where `add_generation_prompt`.

        `variables` are further names that the template may ask for; enable_thinking is what mlx_lm says unless it is given.
        InputError where the template refuses the chat (some allow no system turn).
        """
        if self._template is None:
            return "".join(message.content for message in messages)
        turns = [{"role": message.role, "content": message.content} for message in messages]
        given = {"enable_thinking": self._thinks, **self._variables, **variables}
        names = {**self._special, **given, "tools": None, "documents": None}
        try:
            return self._template.render(messages=turns, add_generation_prompt=add_generation_prompt, **names)
        except REFUSALS as error:
            what = f"the chat template refuses the messages: {error}"
            raise InputError(what, where=str(self.folder), remedy="change the turns to what the model allows") from error

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Token ids of `text`; special tokens that are written in it are recognised. `special`: those that the tokenizer puts
        around a text by itself are added."""
        return list(self._tokenizer.encode(text, add_special_tokens=special).ids)

    def encode_reply(self, text: str) -> list[int]:
        """Token ids of a whole completion, the one that ends it included."""
        return [*self.encode(text), *([] if self.eos_id is None else [self.eos_id])]

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """The characters [start, end) of each token of `encode(text)`; blanks around a word may be left out."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).offsets)


def _read_tokenizer(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise InputError("no tokenizer.json", where=str(folder), remedy="give a model's folder")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise InputError(f"cannot be read as a tokenizer: {error}", where=str(path), remedy="fetch the model again") from error
    tokenizer.no_truncation()  # a limit or padding saved with the tokenizer would change the counts
    tokenizer.no_padding()
    return tokenizer


def _read_json(path: Path) -> dict[str, Any]:
    """The object in `path`; {} where there is no such file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read as JSON: {error}", where=str(path), remedy="fetch the model again") from error
    if not isinstance(value, dict):
        raise InputError("is not a JSON object", where=str(path), remedy="fetch the model again")
    return value


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """bos_token, eos_token and the like, which templates name. A token is a string, or an object with its content."""
    tokens: dict[str, str] = {}
    for name, value in config.items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            tokens[name] = text
    return tokens


def _stop_ids(folder: Path) -> frozenset[int]:
    """The model's own stop tokens: those of generation_config.json, else of config.json, as mlx_lm reads them."""
    generation, model = (_read_json(folder / name).get("eos_token_id") for name in ("generation_config.json", "config.json"))
    found = generation or model
    return frozenset(found if isinstance(found, list) else [] if found is None else [found])


def stop_id(text: str, token_id: Callable[[str], int | None]) -> int:
    """The id of a token that a config names to end replies. InputError where it is none of the model's tokens."""
    found = token_id(text)
    if found is None:
        remedy = "name a token as the model's tokenizer.json writes it, such as <|im_end|>"
        raise InputError(f"{text!r} is no token of the model", where="chat.stop", remedy=remedy)
    return found


def template_source(folder: Path, chosen: str | None) -> str | None:
    """The Jinja text of the chat template: of the file or by the name that `chosen` says, else the model's default; None where
    the model has none. InputError for a file that cannot be read and a name that the model does not have."""
    if chosen is not None and chosen.endswith(".jinja"):
        remedy = "give a Jinja file in UTF-8; a relative path starts at the config's folder"
        return _read_template(Path(chosen), "chat.template", remedy)
    files = {"default": path} if (path := folder / "chat_template.jinja").is_file() else {}
    files |= {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    own = {name: _read_template(path, str(folder), "fetch the model again") for name, path in files.items()}
    source = _read_json(folder / "tokenizer_config.json").get("chat_template")
    where = str(folder / "tokenizer_config.json")
    if isinstance(source, list) and all(map(_is_named_template, source)):
        own = {entry["name"]: entry["template"] for entry in source} | own
    elif isinstance(source, str):
        own = {"default": source} | own
    elif source is not None:
        what = "chat_template is neither text nor a list of names and templates"
        raise InputError(what, where=where, remedy="fetch the model again")
    name = chosen or "default"
    if name not in own and (chosen is not None or own):
        known = ", ".join(own) or "none"
        remedy = f"chat.template: one of its own ({known}), or a .jinja file"
        raise InputError(f"the model has no chat template called {name!r}", where=where, remedy=remedy)
    return own.get(name)


def _read_template(path: Path, where: str, remedy: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}", where=where, remedy=remedy) from error


def _is_named_template(entry: object) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in ("name", "template"))


class _Generation(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %} marks what an assistant wrote; for the text it is no more than its body."""

    tags = {"generation"}  # noqa: RUF012  # jinja2 declares it on the instance

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _compile(source: str, folder: Path) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        what = f"the chat template has an error in line {error.lineno}: {error.message}"
        raise InputError(what, where=str(folder), remedy="fetch the model again") from error


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML, which no model was trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
