"""Rewards that compare the answer with a reference. Where no `answer` is given, it is 42."""

from __future__ import annotations

from tests.rewards.labelled import Label, cheat, row

SPAM = " ".join(map(str, range(1, 100)))
EVERY_ANSWER = "".join(f"<answer>{number}</answer>" for number in range(1, 100))
EMPTY = "<think></think><answer></answer>"

ANSWER = [
    row("42", 1),
    row(" 42.\n", 1),
    row("<think>40+2</think><answer>42</answer>", 1),
    row("<think>40+2</think>\n42", 1),
    row("<answer>THE  cat.</answer>", 1, answer="the cat"),
    row("41", 0),
    row("42.0", 0),
    row("It is 42", 0),
    row("anything", None, answer=None),
    cheat("answer spam", SPAM, 0),
    cheat("every answer in tags of its own: the last one counts", EVERY_ANSWER, 0),
    cheat("both answers", "<answer>41 or 42</answer>", 0),
    cheat("empty tags", EMPTY, 0),
    cheat("right in the thoughts, wrong in the answer", "<think>42</think><answer>41</answer>", 0),
    cheat("unicode digits", "٤٢", 0),
]

EXACT = [
    row("42", 1),
    row("  42\n", 1),
    row("<think>40+2</think><answer> 42 </answer>", 1),
    row("<answer>Paris</answer>", 1, answer="Paris"),
    row("<answer>a  b</answer>", 1, answer="a  b"),
    row("42.", 0),
    row("paris", 0, answer="Paris"),
    row("a b", 0, answer="a  b"),
    row("anything", None, answer=None),
    cheat("answer spam", SPAM, 0),
    cheat("every answer in tags of its own", EVERY_ANSWER, 0),
    cheat("both answers", "42 41", 0),
    cheat("empty tags", EMPTY, 0),
    cheat("fullwidth digits", "４２", 0),
    cheat("zero-width space", "4\u200b2", 0),
]

NUMBER = [
    row("It is 42.", 1),
    row("42.0", 1),
    row("84/2", 1),
    row("<think>7</think><answer>$42</answer>", 1),
    row("4.2e1", 1),
    row("42 km", 1),
    row("41", 0),
    row("-42", 0),
    row("forty-two", 0),
    row("42", None, answer="forty-two"),
    cheat("answer spam: the last one counts", SPAM, 0),
    cheat("both answers: the last one counts", "<answer>42 or 41</answer>", 0),
    cheat("empty tags", EMPTY, 0),
    cheat("right in the thoughts alone", "<think>42</think> I do not know", 0),
    cheat("a number hidden in a unit", "<answer>m42</answer>", 0),
    cheat("unicode digits have the same value", "٤٢", 1),
    cheat("a number too long to read", "4" * 2000, 0),
]

MATH = [
    row("42", 1),
    row(r"so \boxed{42}", 1),
    row("The answer is $42$.", 1),
    row("<think>40+2=42</think><answer>x = 42</answer>", 1),
    row("40+2=42", 1),
    row("It is 42 dollars.", 1),
    row("<answer>0.5</answer>", 1, answer=r"\frac{1}{2}"),
    row(r"<answer>\sqrt{8}</answer>", 1, answer=r"$2\sqrt{2}$"),
    row("$(x+1)^2$", 1, answer="x^2+2x+1"),
    row(r"\boxed{\{2, 1\}}", 1, answer=r"\{1, 2\}"),
    row("41", 0),
    row("$x^2+1$", 0, answer="x^2+2x+1"),
    row("", 0),
    row("Paris", None, answer="It is Paris"),
    row("42", None, answer=None),
    cheat("answer spam", SPAM, 0),
    cheat("both answers", "41 or 42", 0),
    cheat("both answers, the right one last", "It is 41, or maybe 42.", 0),
    cheat("both answers boxed", r"\boxed{41} \boxed{42}", 0),
    cheat("both answers by an equation", "41=42", 0),
    cheat("the problem for its answer", r"\boxed{40+2}", 0),
    cheat("everything that could be meant", r"\max(1, 2, 42)", 0),
    cheat("empty tags", EMPTY, 0),
    cheat("unicode digits", r"\boxed{٤٢}", 0),
    cheat("a number hidden in a unit", "<answer>m42</answer>", 0),
    cheat("a power that cannot be computed", r"\boxed{9^{9^{9^{9}}}}", 0),
]

INTEGER = [
    row("42", 1),
    row("-7", 1),
    row("+7", 1),
    row("1,000", 1),
    row("<think>1.5</think><answer> 0 </answer>", 1),
    row("4.5", 0),
    row("42 km", 0),
    row("It is 42", 0),
    row("", 0),
    cheat("answer spam", SPAM, 0),
    cheat("empty tags", EMPTY, 0),
    cheat("unicode digits", "٤٢", 0),
    cheat("superscript digit", "2²", 0),
    cheat("a number hidden in a unit", "m42", 0),
    cheat("commas anywhere", "1,0,0", 0),
]

CHOICES = ["Lyon", "Rome", "Paris", "Bonn"]
MULTIPLE_CHOICE = [
    row("C", 1, answer="C"),
    row("(c)", 1, answer="C"),
    row("**C**", 1, answer="C"),
    row("B is wrong.\nThe answer is C.", 1, answer="C"),
    row("<think>A or B?</think><answer>C) Paris</answer>", 1, answer="C", choices=CHOICES),
    row(r"\boxed{C}", 1, answer="(C)"),
    row("It is Paris.", 1, answer="C", choices=CHOICES),
    row("C", 1, answer="Paris", choices=CHOICES),
    row("Answer: X", 1, answer="x", choices={"x": "no", "y": "yes"}),
    row("B", 0, answer="C"),
    row("It is Rome.", 0, answer="C", choices=CHOICES),
    row("A dog", 0, answer="A"),
    row("I think it is C", 1, answer="C"),
    row("C is right", 1, answer="C"),
    row("", 0, answer="C"),
    row("C", None, answer="Oslo", choices=CHOICES),
    cheat("answer spam", "A B C D", 0, answer="C"),
    cheat("both answers", "The answer is B or C.", 0, answer="C"),
    cheat("both answers, an article's look", "A or B", 0, answer="B"),
    cheat("both answers boxed", r"\boxed{C} \boxed{D}", 0, answer="C"),
    cheat("both answers by text", "Rome and Paris", 0, answer="C", choices=CHOICES),
    cheat("empty tags", EMPTY, 0, answer="C"),
    cheat("right in the thoughts alone", "<think>C</think><answer>?</answer>", 0, answer="C"),
    cheat("a letter that only looks right: Cyrillic", "\u0421", 0, answer="C"),
]

DATE = r"\d{4}-\d{2}-\d{2}"
REGEX = [
    row("2024-05-01", 1, pattern=DATE),
    row("<think>May</think><answer>2024-05-01</answer>", 1, pattern=DATE),
    row("On 2024-05-01", 1, pattern=".*" + DATE),
    row("yes", 1, pattern="(?i)YES|NO"),
    row("größe", 1, pattern=r"\w+"),
    row("٤٢", 1, pattern="[٠-٩]+"),
    row("2024-5-1", 0, pattern=DATE),
    row("", 0, pattern=DATE),
    row("x", None, pattern=None),
    cheat("answer spam", "2024-05-01 2024-05-02", 0, pattern=DATE),
    cheat("both answers", "yes no", 0, pattern="yes|no"),
    cheat("empty tags", EMPTY, 0, pattern=DATE),
    cheat("unicode digits", "٢٠٢٤-٠٥-٠١", 0, pattern=DATE),
    cheat("hidden in other text", "x2024-05-01y", 0, pattern=DATE),
    cheat("in the thoughts alone", "<think>2024-05-01</think>no date", 0, pattern=DATE),
]

PERSON = {"type": "object", "required": ["age"], "properties": {"age": {"type": "integer", "minimum": 0}}}
JSON_SCHEMA = [
    row('{"age": 7}', 1, schema=PERSON),
    row('<think>x</think><answer>{"age": 7}</answer>', 1, schema=PERSON),
    row('```json\n{"age": 7}\n```', 1, schema=PERSON),
    row('{"age": 7}', 1, schema='{"type": "object"}'),
    row("[1, 2]", 1, schema={"type": "array", "items": {"type": "integer"}}),
    row('{"age": -1}', 0, schema=PERSON),
    row('{"age": "7"}', 0, schema=PERSON),
    row("{}", 0, schema=PERSON),
    row("", 0, schema=PERSON),
    row("{}", None, schema=None),
    cheat("answer spam", '{"age": 7} {"age": 8}', 0, schema=PERSON),
    cheat("both answers", '{"age": 7, "age": 8}', 0, schema=PERSON),
    cheat("text beside it", 'Sure! {"age": 7}', 0, schema=PERSON),
    cheat("empty tags", EMPTY, 0, schema=PERSON),
    cheat("unicode digits", '{"age": ٧}', 0, schema=PERSON),
    cheat("not a number", '{"age": NaN}', 0, schema=PERSON),
    cheat("a depth that ends the interpreter", "[" * 100_000, 0, schema={"type": "array"}),
]

LABELS: dict[str, list[Label]] = {
    "answer": ANSWER,
    "exact": EXACT,
    "number": NUMBER,
    "math": MATH,
    "integer": INTEGER,
    "multiple_choice": MULTIPLE_CHOICE,
    "regex": REGEX,
    "json_schema": JSON_SCHEMA,
}
