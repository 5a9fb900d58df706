"""Rewards for layout, length, repetition and script."""

from __future__ import annotations

from tests.rewards.labelled import Label, cheat, row

GOOD = "<think>40+2</think><answer>42</answer>"
OPENED = "<|assistant|><think>\n"
EMPTY = "<think></think><answer></answer>"

_LAYOUT = [
    row(GOOD, 1),
    row("\n<think>\na\n</think>\n\n<answer>\nb\n</answer>\n", 1),
    row("a</think><answer>b</answer>", 1, prompt=OPENED),
    row("<answer>b</answer>", 0),
    row("<think>a</think>b", 0),
    row("", 0),
    cheat("several answers", "<think>a</think><answer>b</answer><answer>c</answer>", 0),
    cheat("tags in one another", "<think>a<answer>b</answer></think>", 0),
    cheat("answer first", "<answer>b</answer><think>a</think>", 0),
    cheat("tags of another script", "<thinк>a</thinк><answer>b</answer>", 0),
    cheat("tags that never close", "<think>a<answer>b", 0),
]

FORMAT = [
    *_LAYOUT,
    row("x" + GOOD, 0),
    cheat("empty tags: format counts tags alone", EMPTY, 1),
]

THINK_ANSWER_STRICT = [
    *_LAYOUT,
    row("x" + GOOD, 0),
    cheat("empty tags", EMPTY, 0),
    cheat("empty thoughts", "<think> \n</think><answer>42</answer>", 0),
    cheat("format without content", "<think>...</think><answer>?</answer>", 0),
    cheat("empty answer", "<think>a</think><answer>\u200b</answer>", 0),
]

THINK_ANSWER_SOFT = [
    *_LAYOUT,
    row("Well. " + GOOD + " Bye.", 1),
    row("<think>a</think> so <answer>b</answer>", 1),
    cheat("empty tags", EMPTY, 0),
    cheat("empty thoughts", "<think> \n</think><answer>42</answer>", 0),
    cheat("format without content", "<think>...</think><answer>?</answer>", 0),
    cheat("answers before and after", "<answer>a</answer><think>b</think><answer>c</answer>", 0),
]

TAG_COUNT = [
    row(GOOD, 1),
    row("x <answer>b</answer> y <think>a</think>", 1),
    row("a</think><answer>b</answer>", 1, prompt=OPENED),
    row("<think>a</think> b", 0.5),
    row("<think>a <answer>b</answer>", 0.75),
    row("a</think>", 0.25),
    row("", 0),
    row("<plan>a</plan><answer>b</answer>", 1, tags=["plan", "answer"]),
    row("<plan>a</plan>", 0.5, tags=["plan", "answer"]),
    cheat("empty tags", EMPTY, 0),
    cheat("format without content", "<think>...</think><answer>?</answer>", 0),
    cheat("tags many times", GOOD * 10, 0),
    cheat("one answer too many: its pair is lost", GOOD + "<answer>41</answer>", 0.5),
    cheat("closing before opening encloses nothing", "</think>a<think>", 0),
    cheat("tags of another script", "<thinк>a</thinк>", 0),
]

LENGTH_TARGET = [
    row("one two three four", 1, target_length=4),
    row("one two three", 0.75, target_length=4),
    row("one two three four five", 0.75, target_length=4),
    row("a b c d e f g h", 0, target_length=4),
    row("a b c d e f g h i j", 0, target_length=4),
    row("", 0, target_length=4),
    row("one, two: 3.5!", 1, target_length=3),
    row("你好世界", 1, target_length=4),
    row("one two", 1, target_length=None, efficiency_markers=2),
    row("one two", 1, target_length=None, efficiency_markers={"target_length": 2}),
    row("one two", 1, target_length=2, efficiency_markers=9),
    row("one", None, target_length=None, efficiency_markers=None),
    row("one", None, target_length=None, efficiency_markers={"note": "x"}),
    cheat("dots for words", ". . . .", 0, target_length=4),
    cheat("zero-width words", "\u200b \u200b \u200b \u200b", 0, target_length=4),
    cheat("a long text as one word: 20 letters are one", "x" * 200, 0, target_length=4),
    cheat("empty tags are two words each", "<think></think><answer></answer>", 0, target_length=2),
]

OF_20 = {"max_tokens": 20, "cache": 8}  # falls from 12 tokens on


def of_tokens(count: int | None, score: float | None, trick: str = "", text: str = "x", **options: int) -> Label:
    """A completion of so many tokens; the limit is 20 of them."""
    columns = {} if count is None else {"completion_ids": [7] * count}
    return Label(text, score, trick, columns=columns, options=options or OF_20)


SOFT_OVERLONG = [
    of_tokens(0, 0),
    of_tokens(5, 0),
    of_tokens(12, 0),
    of_tokens(13, -1 / 8),
    of_tokens(16, -0.5),
    of_tokens(20, -1),
    of_tokens(21, -1),
    of_tokens(16, 0, max_tokens=20),  # the last 4 of 20, a fifth
    of_tokens(18, -0.5, max_tokens=20),
    of_tokens(3, -1, max_tokens=2, cache=2),
    of_tokens(None, None),
    of_tokens(20, -1, "few characters of many tokens", ""),
    of_tokens(20, -1, "tokens of nothing that is seen", "\u200b"),
    of_tokens(19, -7 / 8, "stops a token before the limit", "x" * 9),
    of_tokens(400, -1, "the answer first, then whatever fills the time", GOOD + "x" * 99),
    of_tokens(14, -0.25, "many characters in few tokens do not count: only tokens do", "x" * 4000),
]

REPETITION = [
    row("", 0),
    row("one two", 0),
    row("one two three", 0),
    row("the cat sat on the mat", 0),
    row("a b c a b c", -1 / 4),
    row("a b c d a b c d", -2 / 6),
    row("A b, c. a B c!", -1 / 4),
    row("one two three four one two three", -1 / 5),
    cheat("one word for ever", "yes " * 102, -0.99),
    cheat("one word, other case and marks", "Yes! yes, YES. yes? Yes; yes: yes", -0.8),
    cheat("one letter without a break", "a" * 20 * 102, -0.99),
    cheat("one Chinese letter without a break", "好" * 102, -0.99),
    cheat("a line again and again", "so it is four\n" * 10, 4 / 38 - 1),
]

LANGUAGE = [
    row("The answer is forty-two.", 1, language="en"),
    row("Die Antwort ist zweiundvierzig.", 1, language="de"),
    row("答案是四十二。", 1, language="zh"),
    row("答案是 $x = \\frac{4}{2}$ 。", 1, language="zh-CN"),
    row("答えは四十二です。", 1, language="ja"),
    row("Ответ", 1, language="ru"),
    row("정답은", 1, language="ko"),
    row("abcd文文文文", 0.5, language="zh"),
    row("Ответ", 0, language="en"),
    row("The answer", 0, language="zh"),
    row("any", None, language=None),
    row("", 0, language="en"),
    cheat("digits alone", "42 42 42", 0, language="en"),
    cheat("empty tags", "<think></think><answer></answer>", 0, language="en"),
    cheat("Chinese for Japanese", "答案是四十二。", 0, language="ja"),
    cheat("a word of it in front", "Да: the answer is of course forty", 2 / 26, language="ru"),
    cheat("lookalikes from another script", "аnswеr", 4 / 6, language="en"),
]

LABELS: dict[str, list[Label]] = {
    "format": FORMAT,
    "think_answer_strict": THINK_ANSWER_STRICT,
    "think_answer_soft": THINK_ANSWER_SOFT,
    "tag_count": TAG_COUNT,
    "length_target": LENGTH_TARGET,
    "soft_overlong": SOFT_OVERLONG,
    "repetition": REPETITION,
    "language": LANGUAGE,
}
