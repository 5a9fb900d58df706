"""mlx-lm-lora's five functions. The scores are those that its release 5.10.2 gives, tricks that work there included."""

from __future__ import annotations

from tests.rewards.labelled import Label, cheat, row

GOOD = "<think> 40+2 </think> <answer> 42 </answer>"
EMPTY = "<think></think><answer></answer>"

ACCURACY = [
    row("42", 2),
    row(GOOD, 2),
    row("<answer>42</answer> and more", 2),
    row("<answer>42", 2),
    row("41", 0),
    row("42.", 0),
    row("It is 42", 0),
    row("", 0),
    row("42", 0, answer=None),
    cheat("answer spam", "41 42 43", 0),
    cheat("both answers: the last one counts", "<answer>41</answer><answer>42</answer>", 2),
    cheat("empty tags", EMPTY, 0),
    cheat("unicode digits", "٤٢", 0),
]

INT = [
    row("42", 0.5),
    row(GOOD, 0.5),
    row("007", 0.5),
    row("<answer>0</answer>", 0.5),
    row("-7", 0),
    row("1,000", 0),
    row("4.5", 0),
    row("", 0),
    cheat("answer spam", "1 2 3", 0),
    cheat("empty tags", EMPTY, 0),
    cheat("unicode digits work", "٤٢", 0.5),
    cheat("superscript digits work", "²", 0.5),
    cheat("a number hidden in a unit", "m42", 0),
]

STRICT = [
    row(GOOD, 0.5),
    row("x " + GOOD + " y", 0.5),
    row("<think>  </think> <answer>  </answer>", 0.5),
    row("<think>a</think><answer>b</answer>", 0),
    row("<think>\na\n</think>\n<answer>\nb\n</answer>\n", 0),
    row("<think> a\nb </think> <answer> c </answer>", 0),
    row("<answer> b </answer>", 0),
    row("", 0),
    cheat("empty tags", EMPTY, 0),
    cheat("blank thoughts work", "<think>   </think> <answer> 42 </answer>", 0.5),
    cheat("several answers work", GOOD * 3, 0.5),
    cheat("answer first", "<answer> b </answer> <think> a </think>", 0),
]

SOFT = [
    row(GOOD, 0.5),
    row("<think>a</think><answer>b</answer>", 0.5),
    row("x <think>a</think> y <answer>b</answer> z", 0.5),
    row("<think>a</think>b", 0),
    row("<answer>b</answer>", 0),
    row("a", 0),
    row("", 0),
    cheat("empty tags", EMPTY, 0),
    cheat("empty thoughts", "<think> \n</think><answer>42</answer>", 0),
    cheat("a point for thoughts works", "<think>.</think><answer>.</answer>", 0.5),
    cheat("answer first", "<answer>b</answer><think>a</think>", 0),
    cheat("tags in one another", "<think>a<answer>b</answer></think>", 0),
]

COUNT = [
    row("<think>\na</think><answer>b</answer>", 0.5),
    row("<think>a</think><answer>b</answer>", 0.375),
    row("<think>\na</think>\n<answer>\nb\n</answer>\n", 0.499),
    row("<think>\na</think><answer>b</answer>" + "x" * 100, 0.4),
    row("<think>\na</think>", 0.25 - 0.017),
    row("</answer>", 0.125),
    row("plain", 0),
    row("", 0),
    cheat("empty tags work", "<think>\n</think><answer></answer>", 0.5),
    cheat("several answers", "<answer>a</answer><answer>b</answer>", 0),
    cheat("tags many times", "<think>\na</think><answer>b</answer>" * 5, 0),
    cheat("a long text after it", "<think>\na</think><answer>b</answer>" + "x" * 600, 0),
]

LABELS: dict[str, list[Label]] = {
    "r1_accuracy_reward_func": ACCURACY,
    "r1_int_reward_func": INT,
    "r1_strict_format_reward_func": STRICT,
    "r1_soft_format_reward_func": SOFT,
    "r1_count_xml": COUNT,
}
