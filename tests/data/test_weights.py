"""Decisive steps: which characters they are, which tokens have them whatever the template writes around, and what those weigh."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, processors

from engine import config as configs
from engine.config import DataConfig
from engine.data import chains
from engine.data.examples import to_example
from engine.data.targets import TargetRow, decisive_share, target_rows
from engine.data.template import ChatTokenizer
from engine.data.values import Row
from engine.data.weights import token_weights
from engine.errors import InputError
from engine.rewards.marks import DECISIVE_WEIGHT
from engine.types import Example, Message
from tests.support.chats import FAMILIES, write_family

CHAIN: dict[str, Any] = {"problem": "7 boxes of 4?", "reasoning_steps": ["4*7", "= 28"], "solution": "28"}
QWEN = (  # as Qwen3 writes its last reply: thinking and answer are taken apart and put together anew
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}"
    "{{ '<think>\\n' + m.content.split('</think>')[0].split('<think>')[-1].strip('\\n') + '\\n</think>\\n\\n' "
    "+ m.content.split('</think>')[-1].lstrip('\\n') }}{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
AROUND = QWEN.replace(
    "'<think>\\n' +", "'4*7 = 28\\n= 28\\n\\n' +"
)  # the steps' own texts, and no thinking tag, before the steps
DROPS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content.split('</think>')[-1] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CUTS = DROPS.replace("m.content.split('</think>')[-1]", "m.content[:20]")
TWICE = DROPS.replace("m.content.split('</think>')[-1]", "m.content + '\\n' + m.content")


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ChatTokenizer]:
    folder = tmp_path_factory.mktemp("families")
    for name in FAMILIES:
        write_family(folder / name, name)
    for name, template in {"qwen": QWEN, "around": AROUND, "drops": DROPS, "cuts": CUTS, "twice": TWICE}.items():
        write_family(folder / name, "chatml")
        (folder / name / "chat_template.jinja").write_text(template)
    return {path.name: ChatTokenizer(path) for path in folder.iterdir()}


def example(**changes: Any) -> Example:
    found = to_example(Row(1, CHAIN | changes), "reasoning", "sft", None)
    assert isinstance(found, Example), found
    return found


def weighed(chat: ChatTokenizer, row: TargetRow) -> dict[float, str]:
    """The text of the tokens of each weight, in order."""
    tokenizer = Tokenizer.from_file(str(chat.folder / "tokenizer.json"))
    found: dict[float, str] = {}
    for token, weight in zip(row.tokens, row.weights, strict=True):
        found[weight] = found.get(weight, "") + tokenizer.id_to_token(token).replace("Ġ", " ").replace("Ċ", "\n")
    return found


def test_the_weights_of_a_tiny_chain() -> None:
    """The embedded model's tokens are bytes, but for the tags:

    <think> | LF | 4 * 7 | LF | = SPACE 2 8 | LF | </think> | LF | <answer> | 2 8 | </answer> | <|end|>
       1      1      3     1         4        1       1       1       1        2        1          1     18 tokens

    Marks [0.5, 1]: the first step's tokens weigh 1 + 2 x 0.5 = 2, the second's 1 + 2 x 1 = 3; in all 11 + 3 x 2 + 4 x 3 = 29.
    """
    chat = ChatTokenizer(configs.model_folder("demo"))
    (row,) = target_rows(chat, example(sparse_indicators=[0.5, 1]), "assistant")
    assert row.weights == (1, 1, 2, 2, 2, 1, 3, 3, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1) and len(row.tokens) == 18
    assert sum(row.weights) == 29 and set(row.mask) == {1}
    (halved,) = target_rows(chat, example(sparse_indicators=[0.5, 1]), "assistant", 2.0)
    assert halved.weights == (1, 1, 1.5, 1.5, 1.5, 1, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1)


def test_the_prompt_weighs_1_where_it_is_learned_too() -> None:
    chat = ChatTokenizer(configs.model_folder("demo"))
    marked = example(sparse_indicators=[0, 1])
    (own,), (whole,) = target_rows(chat, marked, "last"), target_rows(chat, marked, "all")
    assert whole.weights == (1,) * (len(own.prompt) - 1) + own.weights and max(own.weights) == 3


def test_without_marks_or_with_a_weight_of_1_there_are_no_weights() -> None:
    chat = ChatTokenizer(configs.model_folder("demo"))
    plain = target_rows(chat, example(), "assistant")
    assert plain[0].weights == () and example().marks == ()
    assert target_rows(chat, example(sparse_indicators=[0, False]), "assistant") == plain
    assert target_rows(chat, example(sparse_indicators=[1, 1]), "assistant", 1.0) == plain


def test_the_default_is_the_reward_s() -> None:
    assert DataConfig(train="x").decisive_weight == DECISIVE_WEIGHT == 3


def test_rewards_sample_their_completions_and_get_no_marks() -> None:
    found = to_example(Row(1, CHAIN | {"sparse_indicators": [0, 1]}), "reasoning", "rl", None)
    assert isinstance(found, Example) and found.marks == ()


@pytest.mark.parametrize("name", [*FAMILIES, "qwen", "around"])
def test_a_template_may_write_around_the_steps(chats: dict[str, ChatTokenizer], name: str) -> None:
    """Whatever stands before, the steps' own texts among it: `around` begins the reply with 4*7 = 28 and = 28."""
    (row,) = target_rows(chats[name], example(sparse_indicators="= 28"), "assistant")
    assert weighed(chats[name], row)[3] == "= 28"
    if name == "around":
        before = replace(row, tokens=row.tokens[: row.weights.index(3)], weights=row.weights[: row.weights.index(3)])
        assert weighed(chats[name], before) == {1: "4*7 = 28\n= 28\n\n4*7\n"}


def test_a_step_that_the_template_leaves_out_weighs_nothing_and_one_that_it_repeats_weighs_twice(
    chats: dict[str, ChatTokenizer],
) -> None:
    marked = example(sparse_indicators=[0, 1])
    (row,) = target_rows(chats["drops"], marked, "assistant")
    assert row.weights == () and decisive_share([row]) is None
    (row,) = target_rows(chats["twice"], marked, "assistant")
    assert weighed(chats["twice"], row)[3] == "= 28= 28"


def test_a_template_that_counts_characters_is_refused_by_name(chats: dict[str, ChatTokenizer]) -> None:
    """Its reply with signs is another: 20 characters of it are not the same 20."""
    marked = example(sparse_indicators=[1, 0])
    with pytest.raises(InputError, match="cannot be told") as refused:
        target_rows(chats["cuts"], marked, "assistant")
    assert "data.decisive_weight: 1" in refused.value.remedy
    assert target_rows(chats["cuts"], marked, "assistant", 1)[0].weights == ()


def test_signs_that_the_text_itself_holds_are_not_used(chats: dict[str, ChatTokenizer]) -> None:
    steps = ["\U000f0000 a\U000f0001", "\U000f0002", "b"]
    marked = example(reasoning_steps=steps, sparse_indicators=[0, 1, 0])
    (row,) = target_rows(chats["chatml"], marked, "assistant")
    assert [weight for weight in row.weights if weight != 1] == [3] * 4, "four bytes, none of them merged"


def test_a_token_that_reaches_into_a_step_is_the_step_s() -> None:
    """ab|c LF|LF d|e of the steps abc (mark 0.5) and de (mark 1): the token on the border of step and line end has the step's
    weight 1 + 4 x 0.5 = 3, LF d has 5, and a token that has both steps the larger."""
    text, places = "abc\nde", [(0, 3, 0.5), (4, 6, 1.0)]
    assert token_weights(len(text), [(0, 2), (2, 4), (4, 5), (5, 6)], places, 5) == [3, 3, 5, 5]
    assert token_weights(len(text), [(0, 2), (2, 3), (3, 5), (5, 6)], places, 5) == [3, 3, 5, 5]
    assert token_weights(len(text), [(0, 3), (3, 4), (4, 6)], places, 5) == [3, 1, 5]
    assert token_weights(len(text), [(0, 5), (5, 6)], places, 5) == [5, 5]


def test_blanks_that_a_tokenizer_leaves_out_of_its_offsets_are_counted(chats: dict[str, ChatTokenizer]) -> None:
    """GPT-2's post-processor trims blanks: a token that is a blank is left with no character, and begins where the next one does.
    With and without trimming the blanks before a step weigh 1 and all tokens of the step have its weight, blanks and each byte
    of a character that is several tokens among them."""
    tokenizer = Tokenizer.from_file(str(chats["chatml"].folder / "tokenizer.json"))
    text, places = "x  a  b é日\ny", [(3, 10, 1.0)]
    found = []
    for trim in (True, False):
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim)
        encoding = tokenizer.encode(text, add_special_tokens=False)
        found.append((encoding.offsets, token_weights(len(text), encoding.offsets, places, 3)))
    (trimmed, first), (exact, second) = found
    assert trimmed != exact and any(start == end for start, end in trimmed)
    assert first == second == [1, 1, 1, *[3] * (len(exact) - 5), 1, 1]


def test_the_share_of_decisive_tokens() -> None:
    """Rows of 3 and 2 targets, of which 1 weighs more (a fourth token that does is no target): 1 of 5."""
    marked = TargetRow((1,), (2, 3, 4, 5), (1, 0, 1, 1), (1.0, 3.0, 2.0, 1.0))
    assert decisive_share([marked, TargetRow((1,), (2, 3), (1, 1))]) == pytest.approx(1 / 5)
    assert decisive_share([TargetRow((1,), (2, 3), (1, 1))]) is None and decisive_share([]) is None


_step = st.text(alphabet="a2 =é日\U0001f600<\n", min_size=1, max_size=6).filter(lambda text: bool(text.strip()))
_chain = st.lists(st.tuples(st.one_of(st.just("= 2"), _step), st.sampled_from([0, 0.25, 0.5, 1])), min_size=1, max_size=6)


def spans_by_hand(steps: list[str]) -> list[tuple[int, int]]:
    """In bytes: <think> and a line end are 8, and each step is followed by a line end."""
    spans, place = [], 8
    for step in steps:
        size = len(step.strip().encode())
        spans.append((place, place + size))
        place += size + 1
    return spans


@pytest.mark.parametrize("family", ["chatml", "llama3", "thinking", "none"])
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chain=_chain)
def test_a_token_has_the_largest_mark_of_its_bytes(
    chats: dict[str, ChatTokenizer], family: str, chain: list[tuple[str, float]]
) -> None:
    """Steps that repeat each other, of characters of several bytes, with blanks and line ends around and inside. The tokens here
    are bytes, joined: a token's place follows from the bytes before it, without any offsets."""
    steps, marks = [step for step, _ in chain], [mark for _, mark in chain]
    chat, marked = chats[family], example(reasoning_steps=steps, sparse_indicators=marks)
    (row,) = target_rows(chat, marked, "assistant")
    tokenizer = Tokenizer.from_file(str(chat.folder / "tokenizer.json"))
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    text = marked.completion or ""
    assert [text[start:end] for start, end, _ in marked.marks] == [step.strip() for step, mark in chain if mark]
    expected, place = [], 0
    for token in row.tokens:
        name = tokenizer.id_to_token(token)
        end = place + (len(name.encode()) if name in added else len(name))  # elsewhere a character stands for a byte
        inside = [mark for (first, last), mark in zip(spans_by_hand(steps), marks, strict=True) if first < end and place < last]
        expected.append(1 + 2 * max(inside, default=0))
        place = end
    assert list(row.weights or (1,) * len(row.tokens)) == expected
    assert bool(row.weights) == any(marks)


def test_a_chain_knows_where_it_is_written() -> None:
    """Also in front of a solution that says more than the answer, which repeats a step; and a step that says what one before it
    says stands where it is written."""
    fields = {"reasoning_steps": " 4*7 \n\n= 28", "sparse_indicators": [True, 0.5]}
    text = chains.render(chains.steps(fields), "= 28\n#### 28", "28")
    assert text == "<think>\n4*7\n= 28\n= 28\n#### 28\n</think>\n<answer>28</answer>"
    assert chains.marked_spans(fields) == ((8, 11, 1.0), (12, 16, 0.5))
    assert [text[start:end] for start, end, _ in chains.marked_spans(fields)] == ["4*7", "= 28"]
    assert chains.marked_spans({"reasoning_steps": ["2+2", "2+2"], "sparse_indicators": [0, 1]}) == ((12, 15, 1.0),)


def test_offsets_are_those_of_the_ids(chats: dict[str, ChatTokenizer]) -> None:
    """Special tokens that the tokenizer puts around a text by itself have none: <s> is not among them."""
    for chat in chats.values():
        text = "é 日\n<|im_end|>  Yes, no."
        offsets = chat.offsets(text)
        assert len(offsets) == len(chat.encode(text)) and (offsets[0][0], offsets[-1][1]) == (0, len(text))
        assert (4, 14) in offsets


def test_marks_are_of_the_completion_alone() -> None:
    """The message that a row's problem is may say the same."""
    marked = example(problem="= 28?", sparse_indicators=[0, 1])
    assert marked.messages == (Message("user", "= 28?"),) and marked.marks == ((12, 16, 1.0),)
