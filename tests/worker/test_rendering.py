"""The worker's rows are those that `validate` measures without mlx, in the ids that mlx_lm generates from."""

from __future__ import annotations

from pathlib import Path

import pytest
from jinja2 import TemplateError
from mlx_lm.utils import load_config, load_tokenizer

from engine import config as configs
from engine.data.targets import Targets, context, target_rows
from engine.data.template import ChatTokenizer
from engine.errors import InputError
from engine.types import Example, Message
from engine.worker.rendering import ModelChat
from tests.support.chats import FAMILIES, write_family

ASKED = Message("user", "What is 2+2?\n")
SYSTEM = Message("system", "Be <brief>.")
TALKS = (
    (ASKED, Message("assistant", "4")),
    (SYSTEM, ASKED, Message("assistant", "  4 \n"), Message("user", "é 日本"), Message("assistant", "Yes")),
    (
        ASKED,
        Message("assistant", "<think>2+2</think>\n\n4"),
        ASKED,
        Message("assistant", "\n4"),
        ASKED,
        Message("assistant", "4!"),
    ),
)


def both(folder: Path) -> tuple[ModelChat, ChatTokenizer]:
    """The folder's chat as the worker and as `validate` read it."""
    tokenizer = load_tokenizer(folder, eos_token_ids=load_config(folder).get("eos_token_id"))
    return ModelChat(tokenizer, frozenset(tokenizer.eos_token_ids)), ChatTokenizer(folder)


@pytest.mark.parametrize("name", ["demo", *FAMILIES])
def test_rows_are_those_that_validate_measures(tmp_path: Path, name: str) -> None:
    model, plain = both(configs.model_folder("demo") if name == "demo" else write_family(tmp_path / name, name))
    assert (model.stop_ids, model.eos_id, model.has_template) == (plain.stop_ids, plain.eos_id, plain.has_template)
    kinds: tuple[Targets, ...] = ("assistant", "last", "all")
    for turns in TALKS:
        example = Example(1, turns[:-1], turns[-1].content, None, turns=turns if len(turns) > 2 else ())
        for targets in kinds:
            rows = target_rows(model, example, targets)
            assert rows and rows == target_rows(plain, example, targets)


@pytest.mark.parametrize("name", ["demo", *FAMILIES])
def test_a_context_is_what_mlx_lm_generates_from(tmp_path: Path, name: str) -> None:
    """mlx_lm's command line: the template's own ids, or without a template the text with its special tokens."""
    model, _ = both(configs.model_folder("demo") if name == "demo" else write_family(tmp_path / name, name))
    for turns in TALKS:
        said = [{"role": turn.role, "content": turn.content} for turn in turns[:-1]]
        if model.has_template:
            expected = model.tokenizer.apply_chat_template(said, add_generation_prompt=True)
        else:
            expected = model.tokenizer.encode("".join(turn["content"] for turn in said))
        assert context(model, turns[:-1])[1] == list(expected)


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('no') }}", "{{ messages[5].content }}", "{{ 1 // 0 }}", "{{ 'a' + 1 }}"]
)
def test_refusals_and_mistakes_of_a_template_are_refusals(tmp_path: Path, template: str) -> None:
    """An index too far, a division by zero and a wrong type end the row, not the run; `validate` counts the same rows."""
    folder = write_family(tmp_path / "m", "none")
    (folder / "chat_template.jinja").write_text(template)
    model, plain = both(folder)
    with pytest.raises(TemplateError):
        context(model, [ASKED])
    with pytest.raises(InputError, match="refuses"):
        context(plain, [ASKED])
