"""Rewards for reasoning chains and domains."""

from __future__ import annotations

from tests.rewards.labelled import Label, cheat, row

ASKED = "Mia has 7 boxes of 4 pencils and gives away 3. How many are left?"
STEPS = ["The boxes hold 7*4 = 28 pencils.", "After giving some away, 28-3 = 25 are left."]  # 7 + 9 words
MARKS = [0, 1]
LISTING = " ".join(map(str, range(1, 101)))
TABLE = "\n".join(f"{left}*{right} = {left * right}" for left in range(1, 13) for right in range(1, 13))


def chain(completion: str, score: float | None, steps: object = STEPS, marks: object = None) -> Label:
    return row(completion, score, prompt=ASKED, reasoning_steps=steps, sparse_indicators=marks)


def trick(name: str, completion: str, score: float | None, steps: object = STEPS, marks: object = None) -> Label:
    return cheat(name, completion, score, prompt=ASKED, reasoning_steps=steps, sparse_indicators=marks)


STEP_COVERAGE = [
    chain("<think>\n" + "\n".join(STEPS) + "\n</think><answer>25</answer>", 1),
    chain("7*4=28 pencils. Then 28-3=25.", 1),
    chain("4 times 7 makes 28. She keeps 28 - 3, which is 25.", 1),
    chain("7*4=28 pencils.", 0.5),
    chain("28-3=25", 0.5),
    chain("7*4=28 pencils.", 0.25, marks=MARKS),  # 1 of 1 + 3
    chain("28-3=25", 0.75, marks=[False, True]),
    chain("28-3=25", 2 / 3, marks=[0, 0.5]),  # 2 of 1 + 2
    chain("28-3=25", 0.75, marks=["28-3"]),
    chain("7*4=27 pencils. Then 27-3=24.", 0),
    chain("", 0),
    chain("7*4=28", 1, "7*4 = 28"),
    chain("The court may refuse the appeal.", 1, ["Therefore the court refuses an appeal."]),
    chain("x", None, None),
    trick("the answer alone", "<answer>25</answer>", 0),
    trick("the prompt again", ASKED, 0),
    trick("the prompt again, for a step in words", ASKED, 0, ["Count the pencils in all boxes, then subtract."]),
    trick("a list of numbers", LISTING, 0),
    trick("a list of numbers on lines", LISTING.replace(" ", "\n"), 0),
    trick("a multiplication table: 1 step of 2, 4 x 16 + 40 of 432 words", TABLE, 0.5 * 104 / 432),
    trick("the same step again and again", "7*4=28. " * 3, 0.5),
    trick("steps without values", "<think>First the boxes. Then the rest.</think>", 0),
]

DOSE = {"required_terms": ["clearance", "half-life"], "units": ["mg", "mg/kg"]}
DOMAIN = [
    row("The clearance is 2 and the half-life is 6 hours. <answer>5 mg</answer>", 1, domain_context=DOSE),
    row("The clearance is 2 and the half-life is 6 hours. <answer>5 hours</answer>", 0.5, domain_context=DOSE),
    row("The clearance is high. <answer>5 mg/kg</answer>", 0.75, domain_context=DOSE),
    row("<answer>5\\,\\text{mg}</answer>", 0.5, domain_context=DOSE),
    row("<answer>5 m^2</answer>", 1, domain_context={"unit": "m^2"}),
    row("Nothing of it.", 0, domain_context=DOSE),
    row("The limitation period began in May.", 1, domain_context=["limitation period"]),
    row("The limitation period began.", 0.5, domain_context=None, required_terms=["limitation period", "notice"]),
    row("We give notice to the tenant.", 1, domain_context=None, required_elements="notice"),
    cheat("a list of terms between tags", "<think>clearance, half-life</think>", 0, domain_context=DOSE),
    cheat("terms padded with tags", "<think><answer>clearance</answer></think>", 0, domain_context=DOSE),
    row("x", None, domain_context="You are a pharmacist."),
    row("x", None, domain_context=None),
    row("x", None, domain_context={"region": "EU"}),
    cheat("a list of terms", "clearance, half-life", 0, domain_context=DOSE),
    cheat("a list of terms on lines", "clearance\nhalf-life", 0, domain_context=DOSE),
    cheat("a term many times", "The clearance is the clearance is the clearance.", 0.25, domain_context=DOSE),
    cheat("a number hidden in a unit", "<answer>mg5</answer>", 0, domain_context=DOSE),
    cheat("a unit inside a longer one", "<answer>5 mg/h</answer>", 0, domain_context=DOSE),
    cheat("both units: the last number's counts", "<answer>5 mg or 5 hours</answer>", 0, domain_context=DOSE),
    cheat("units without a number", "<answer>mg</answer>", 0, domain_context=DOSE),
    cheat("unicode digits", "<answer>٥ mg</answer>", 0, domain_context=DOSE),
]

LABELS: dict[str, list[Label]] = {"step_coverage": STEP_COVERAGE, "domain": DOMAIN}
