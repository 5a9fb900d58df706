"""What supervised training learns of a chat: which text is a target, and that every reply has the context of generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from engine.data.formats import load
from engine.data.targets import TargetRow, Targets, target_rows
from engine.data.template import ChatTokenizer
from engine.types import Example, Message
from tests.support.chats import FAMILIES, write_family

SYSTEM, FIRST, SECOND = Message("system", "Be brief."), Message("user", "What is 2+2?"), Message("user", "Sure?")
CHAT = (SYSTEM, FIRST, Message("assistant", "4"), SECOND, Message("assistant", "Yes, 4."))


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ChatTokenizer]:
    folder = tmp_path_factory.mktemp("families")
    return {name: ChatTokenizer(write_family(folder / name, name)) for name in FAMILIES}


def example_of(turns: Sequence[Message]) -> Example:
    earlier = any(turn.role == "assistant" for turn in turns[:-1])
    return Example(1, tuple(turns[:-1]), turns[-1].content, turns[-1].content, turns=tuple(turns) if earlier else ())


def pieces(chat: ChatTokenizer, row: TargetRow) -> list[tuple[int, str]]:
    """The row's text in runs of equal mask, the prompt with its first run."""
    tokenizer = Tokenizer.from_file(str(chat.folder / "tokenizer.json"))
    runs: list[tuple[int, list[int]]] = []
    for token, target in zip(row.prompt + row.tokens, (0,) * len(row.prompt) + row.mask, strict=True):
        if not runs or runs[-1][0] != target:
            runs.append((target, []))
        runs[-1][1].append(token)
    joined = [(target, "".join(tokenizer.id_to_token(token) for token in ids)) for target, ids in runs]
    return [(target, text.replace("Ġ", " ").replace("Ċ", "\n")) for target, text in joined]


def test_every_reply_of_a_chatml_chat_is_a_target_with_its_end(chats: dict[str, ChatTokenizer]) -> None:
    (row,) = target_rows(chats["chatml"], example_of(CHAT), "assistant")
    before = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n"
    between = "\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"
    assert pieces(chats["chatml"], row) == [(0, before), (1, "4<|im_end|>"), (0, between), (1, "Yes, 4.<|im_end|>")]
    assert list(row.prompt) == chats["chatml"].encode(before) and row.mask[0] == row.mask[-1] == 1


def test_every_reply_of_a_llama_3_chat_is_a_target_with_its_end(chats: dict[str, ChatTokenizer]) -> None:
    """<|eot_id|> ends a turn, <|end_of_text|> the sequence: both are stop tokens, and only the first is written."""
    turns = (FIRST, Message("assistant", "  4\n"), SECOND, Message("assistant", "Yes"))
    (row,) = target_rows(chats["llama3"], example_of(turns), "assistant")
    header = "<|start_header_id|>{}<|end_header_id|>\n\n"
    reply, ask = header.format("assistant"), header.format("user")
    assert pieces(chats["llama3"], row) == [
        (0, f"<s>{ask}What is 2+2?<|eot_id|>{reply}"),
        (1, "4<|eot_id|>"),
        (0, f"{ask}Sure?<|eot_id|>{reply}"),
        (1, "Yes<|eot_id|>"),
    ]


def test_last_is_the_last_reply_and_all_is_everything_but_the_first_token(chats: dict[str, ChatTokenizer]) -> None:
    (chat,) = target_rows(chats["chatml"], example_of(CHAT), "assistant")
    (last,) = target_rows(chats["chatml"], example_of(CHAT), "last")
    (whole,) = target_rows(chats["chatml"], example_of(CHAT), "all")
    assert pieces(chats["chatml"], last)[1:] == [(1, "Yes, 4.<|im_end|>")]
    assert len(whole.prompt) == 1 and set(whole.mask) == {1}
    assert chat.prompt + chat.tokens == last.prompt + last.tokens == whole.prompt + whole.tokens


@pytest.mark.parametrize("targets", ["assistant", "last"])
def test_of_a_pair_the_completion_is_the_target(chats: dict[str, ChatTokenizer], targets: Targets) -> None:
    """Also where the prompt, given as messages, holds an earlier reply: only a `messages` row is a chat to learn whole."""
    pair = replace(example_of(CHAT), turns=())
    (row,) = target_rows(chats["chatml"], pair, targets)
    assert [target for target, _ in pieces(chats["chatml"], row)] == [0, 1] and set(row.mask) == {1}
    (whole,) = target_rows(chats["chatml"], pair, "all")
    assert len(whole.tokens) == len(row.prompt) + len(row.tokens) - 1


def test_a_template_that_strips_thinking_gives_each_reply_its_own_row(chats: dict[str, ChatTokenizer]) -> None:
    """The first reply is learned with its thinking; when the second is generated the template has taken it out."""
    thought = Message("assistant", "<think>\n2+2\n</think>\n\n4")
    turns = (FIRST, thought, SECOND, Message("assistant", "Yes"))
    first, second = target_rows(chats["thinking"], example_of(turns), "assistant")
    asked = "<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n"
    assert pieces(chats["thinking"], first) == [(0, asked), (1, "<think>\n2+2\n</think>\n\n4<|im_end|>")]
    assert pieces(chats["thinking"], second) == [
        (0, f"{asked}4<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"),
        (1, "<think>\n\n</think>\n\nYes<|im_end|>"),
    ]


def test_tokens_that_merge_across_a_border_give_each_reply_its_own_row(chats: dict[str, ChatTokenizer]) -> None:
    """The header ends in a line end and the first reply begins with one: two line ends are one token, so the second context
    does not begin with the ids of the first row, although its text does."""
    chat = chats["chatml"]
    turns = (FIRST, Message("assistant", "\n4"), SECOND, Message("assistant", "Yes"))
    rows = target_rows(chat, example_of(turns), "assistant")
    assert len(rows) == 2
    assert list(rows[1].prompt) == chat.encode(chat.render(turns[:3], True))
    assert list(rows[1].prompt[: len(rows[0].prompt) + 1]) != [*rows[0].prompt, rows[0].tokens[0]]


def test_where_only_one_border_breaks_the_others_still_share_a_row(chats: dict[str, ChatTokenizer]) -> None:
    texts = ("a", "b", "\nc", "d", "e")
    turns = [turn for text in texts for turn in (SECOND, Message("assistant", text))]
    rows = target_rows(chats["chatml"], example_of(turns), "assistant")
    learned = [[text for target, text in pieces(chats["chatml"], row) if target] for row in rows]
    assert learned == [[f"{text}<|im_end|>" for text in part] for part in (("a", "b", "\nc"), ("d", "e"))]


def test_a_greeting_replies_to_nobody_and_is_context(chats: dict[str, ChatTokenizer]) -> None:
    turns = (Message("assistant", "Hello!"), FIRST, Message("assistant", "4"))
    (row,) = target_rows(chats["chatml"], example_of(turns), "assistant")
    assert [text for target, text in pieces(chats["chatml"], row) if target] == ["4<|im_end|>"]
    assert "Hello!" in pieces(chats["chatml"], row)[0][1]


def test_limits_count_prompt_and_everything_after_it() -> None:
    row = TargetRow((1, 2), (3, 4, 5), (1, 0, 1))
    assert row.is_within(2, 3) and not row.is_within(1, 3) and not row.is_within(2, 2)
    assert not TargetRow((1, 2), (), ()).is_within(9, 9), "nothing to learn"


words = st.text(alphabet="a2 \n<", min_size=1, max_size=6).filter(str.strip)
rounds = st.lists(st.tuples(words, words), min_size=1, max_size=4)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(talk=rounds, system=st.booleans())
def test_every_reply_has_the_context_of_generation(
    chats: dict[str, ChatTokenizer], family: str, talk: list[tuple[str, str]], system: bool
) -> None:
    """Cut at its runs of targets, a chat's rows are (ids before, ids learned) for each reply, in order. The ids before are those
    of one encoding of the turns so far with the generation prompt; those learned are what `last` learns of the chat cut there."""
    chat = chats[family]
    turns = [SYSTEM] if system else []
    expected = []
    for question, answer in talk:
        turns.append(Message("user", question))
        text = chat.render(turns, True)
        turns.append(Message("assistant", answer))
        (cut,) = target_rows(chat, example_of(turns), "last")
        assert list(cut.prompt) == chat.encode(text, special=family == "none")
        assert cut.tokens[-1] in chat.stop_ids and not chat.stop_ids & set(cut.tokens[:-1])
        expected.append((cut.prompt, cut.tokens))
    found = []
    for row in target_rows(chat, example_of(turns), "assistant"):
        ids, mask = row.prompt + row.tokens, (0,) * len(row.prompt) + row.mask
        starts = [i for i in range(len(ids)) if mask[i] and not mask[i - 1]]
        for start in starts:
            end = next((i for i in range(start, len(ids)) if not mask[i]), len(ids))
            found.append((ids[:start], ids[start:end]))
    assert found == expected


@pytest.mark.parametrize(
    ("name", "rows"), [("chatml", 1), ("llama3", 1), ("thinking", 2), ("unthinking", 2), ("words", 2), ("none", 2)]
)
def test_how_many_rows_a_chat_becomes(chats: dict[str, ChatTokenizer], name: str, rows: int) -> None:
    """words and none: no token ends an earlier reply; a shared row would leave out the stop token that each must learn."""
    assert len(target_rows(chats[name], example_of(CHAT), "assistant")) == rows


def test_a_messages_row_keeps_its_whole_chat(tmp_path: Path) -> None:
    """Up to its last reply, with the system text; a single exchange and a pair keep nothing beside prompt and completion."""
    path = tmp_path / "chats.jsonl"
    chat = '[{"role":"user","content":"a"},{"role":"assistant","content":"b"},{"role":"user","content":"c"},%s]'
    more = chat % '{"role":"assistant","content":"d"},{"role":"user","content":"e"}'
    single = '[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]'
    path.write_text(f'{{"messages": {more}}}\n{{"messages": {single}}}\n')
    long, short = load(path, kind="sft", system="S").examples
    assert [(turn.role, turn.content) for turn in long.turns] == [
        ("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"),
    ]  # fmt: skip
    assert long.messages == long.turns[:-1] and long.completion == "d"
    assert short.turns == () and load(path, kind="rl").examples[0].turns == ()
    path.write_text(f'{{"prompt": {chat % ""}, "completion": "d"}}\n'.replace(",]", "]"))
    assert load(path, kind="sft").examples[0].turns == ()
