"""ChatTokenizer against transformers on a small tokenizer that is trained here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from engine.data.template import ChatTokenizer
from engine.errors import InputError
from engine.types import Message
from tests.support.chats import write_family

CHATML = """\
{%- if messages[0]['role'] != 'system' %}
    {{- '<|im_start|>system\\nYou are <helpful> & "kind".<|im_end|>\\n' }}
{%- endif %}
{% for message in messages %}
    {%- if loop.index0 > 100 %}{% break %}{% endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' }}
    {%- if message.role == 'assistant' %}{% generation %}{{ message.content | trim }}{% endgeneration %}
    {%- else %}{{ message['content'] }}{% endif %}
    {{- eos_token + '\\n' }}
{%- endfor %}
{%- if tools is not none and tools %}{{ raise_exception('no tools') }}{% endif %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}{{ {'a': '<é>'} | tojson }}
{%- endif %}
"""
STRICT = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "[INST] {{ m.content }} [/INST]{% endfor %}"
)
CHATS = [
    (Message("user", "What is 2+2?"),),
    (
        Message("system", "Be brief."),
        Message("user", "héllo <|im_end|> 日本"),
        Message("assistant", "  4 \n"),
        Message("user", "why?\n\n"),
    ),
]


def folder(path: Path, template: object = CHATML, *, jinja: str | None = None) -> Path:
    path.mkdir()
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<s>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["What is 2+2? The system and the user and the assistant."] * 4, trainer)
    tokenizer.enable_truncation(3)  # as saved with some models; must not cut prompts
    tokenizer.save(str(path / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": {"content": "<|im_end|>", "__type": "AddedToken"},
        "chat_template": template,
    }
    (path / "tokenizer_config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    if jinja is not None:
        (path / "chat_template.jinja").write_text(jinja)
    return path


def agree(path: Path, add_generation_prompt: bool) -> None:
    ours, theirs = ChatTokenizer(path), AutoTokenizer.from_pretrained(str(path))
    for chat in CHATS:
        turns = [{"role": m.role, "content": m.content} for m in chat]
        text = theirs.apply_chat_template(turns, add_generation_prompt=add_generation_prompt, tokenize=False)
        ids = theirs.apply_chat_template(turns, add_generation_prompt=add_generation_prompt, return_dict=False)
        assert ours.render(chat, add_generation_prompt) == text
        assert ours.encode(text) == ids


@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_ids_are_those_of_transformers(tmp_path: Path, add_generation_prompt: bool) -> None:
    agree(folder(tmp_path / "m"), add_generation_prompt)


def test_the_jinja_file_wins_and_a_list_has_a_default(tmp_path: Path) -> None:
    other = "{% for m in messages %}{{ m.content }}|{% endfor %}"
    agree(folder(tmp_path / "file", jinja=other), True)
    assert ChatTokenizer(tmp_path / "file").render(CHATS[0], True) == "What is 2+2?|"
    agree(folder(tmp_path / "list", [{"name": "tool_use", "template": "x"}, {"name": "default", "template": other}]), True)
    with pytest.raises(InputError, match=r"no chat template called .default."):
        ChatTokenizer(folder(tmp_path / "none", [{"name": "tool_use", "template": "x"}]))


def test_special_tokens_are_not_added(tmp_path: Path) -> None:
    tokenizer = ChatTokenizer(folder(tmp_path / "m"))
    assert tokenizer.encode("<|im_end|>") == [2]
    assert tokenizer.encode("") == []


def test_special_tokens_are_added_where_they_are_asked_for(tmp_path: Path) -> None:
    """As transformers does with a text that no chat template has written: here a BOS token before it."""
    path = write_family(tmp_path / "m", "none")
    ours, theirs = ChatTokenizer(path), AutoTokenizer.from_pretrained(str(path))
    assert ours.encode("Hi", special=True) == theirs.encode("Hi") == [0, *ours.encode("Hi")]


def test_stop_tokens_are_the_models_and_the_tokenizers(tmp_path: Path) -> None:
    """generation_config.json wins over config.json; the tokenizer's own end is one, too, and is the one that is appended."""
    path = folder(tmp_path / "m")
    assert (ChatTokenizer(path).stop_ids, ChatTokenizer(path).eos_id) == ({2}, 2)
    (path / "config.json").write_text('{"eos_token_id": 1}')
    assert ChatTokenizer(path).stop_ids == {1, 2}
    (path / "generation_config.json").write_text('{"eos_token_id": [0, 2]}')
    assert (ChatTokenizer(path).stop_ids, ChatTokenizer(path).eos_id) == ({0, 2}, 2)
    (path / "tokenizer_config.json").write_text("{}")
    assert ChatTokenizer(path).eos_id is None


def test_thinking_is_asked_for_where_the_model_has_tokens_for_it(tmp_path: Path) -> None:
    for name, header in (("thinking", ""), ("unthinking", "<think>\n\n</think>\n\n")):
        text = ChatTokenizer(write_family(tmp_path / name, name)).render(CHATS[0], True)
        assert text.endswith(f"<|im_start|>assistant\n{header}")


def test_variables_reach_the_template(tmp_path: Path) -> None:
    tokenizer = ChatTokenizer(folder(tmp_path / "m", "{{ 'yes' if enable_thinking is defined and enable_thinking else 'no' }}"))
    assert tokenizer.render(CHATS[0], True) == "no"
    assert tokenizer.render(CHATS[0], True, enable_thinking=True) == "yes"


def test_without_a_template_contents_are_joined(tmp_path: Path) -> None:
    tokenizer = ChatTokenizer(folder(tmp_path / "m", None))
    assert not tokenizer.has_template
    assert tokenizer.render((Message("system", "A "), Message("user", "B")), True) == "A B"
    assert ChatTokenizer(folder(tmp_path / "n")).has_template


def test_a_template_that_refuses_a_chat(tmp_path: Path) -> None:
    tokenizer = ChatTokenizer(folder(tmp_path / "m", STRICT))
    assert tokenizer.render(CHATS[0], True) == "<s>[INST] What is 2+2? [/INST]"
    with pytest.raises(InputError, match="System role not supported"):
        tokenizer.render(CHATS[1], True)


def test_templates_are_sandboxed(tmp_path: Path) -> None:
    """The usual way out of Jinja, from a string to every class of the interpreter, is refused."""
    tokenizer = ChatTokenizer(folder(tmp_path / "m", "{{ ''.__class__.__mro__[1].__subclasses__() }}"))
    with pytest.raises(InputError, match="refuses"):
        tokenizer.render(CHATS[0], True)


def test_broken_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        ChatTokenizer(tmp_path)
    with pytest.raises(InputError, match="error in line 2"):
        ChatTokenizer(folder(tmp_path / "syntax", "{{ 1 }}\n{% if %}"))
    path = folder(tmp_path / "json")
    (path / "tokenizer_config.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read as JSON"):
        ChatTokenizer(path)
    (path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="cannot be read as a tokenizer"):
        ChatTokenizer(path)
