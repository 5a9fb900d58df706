"""Calculations of the ward and the dispensary. The drugs are made up, and every rule that is used stands in the question."""

from __future__ import annotations

import random
from fractions import Fraction

from engine.data.samples.problem import Field, Problem, Step, Template, fixed, hinges, near, require, show, tenths

DRUGS = ("Examycin", "Testamol", "Fictadrine", "Modelopril", "Samplicin", "Paperidone", "Mockazole", "Trialbine", "Draftoxin")
of_the_ward = Field(
    "medicine", ("nursing student", "paramedic trainee", "medical student", "pharmacy student", "ward nurse")
).problem


def capped_dose(rng: random.Random) -> Problem:
    """A dose by weight with a maximum, as a volume. Passed over: no look at the maximum."""
    drug, weight, dose = rng.choice(DRUGS), tenths(rng, 8, 60), Fraction(rng.randint(4, 50), 2)
    cap, strength, per = 50 * rng.randint(3, 20), rng.choice((50, 100, 120, 125, 200, 250)), rng.choice((5, 10))
    by_weight = dose * weight
    require(by_weight != cap)
    is_capped = by_weight > cap
    given = min(by_weight, Fraction(cap))
    volume = given * per / strength
    then = f"the dose is the maximum dose, {cap} mg" if is_capped else f"which is the maximum dose, it stays at {show(given)} mg"
    return of_the_ward(
        rng,
        f"A {rng.choice(('patient', 'child', 'boy', 'girl'))} with a body weight of {show(weight)} kg is to get a single dose "
        f"of the fictional drug {drug}: {show(dose)} mg per kg of body weight, but never more than {cap} mg. The suspension "
        f"holds {strength} mg in {per} mL. What volume is to be given, in mL to one decimal place?",
        [
            Step(f"By body weight the dose would be {show(dose)}*{show(weight)} = {show(by_weight)} mg."),
            Step(f"As {show(by_weight)} {'>' if is_capped else '<'} {cap}, {then}.", hinges(volume, by_weight * per / strength)),
            Step(f"This dose is held by a volume of {show(given)}*{per}/{strength} {near(volume, 1)} mL."),
        ],
        f"{fixed(volume, 1)} mL",
        "The volume to give is",
        ("body weight", "maximum dose", "volume"),
        ("mL", "ml"),
        "a maximum dose holds for every body weight",
    )


def single_dose(rng: random.Random) -> Problem:
    """A capped daily dose in equal parts. Passed over: no look at the maximum; the daily dose at once."""
    drug, weight, dose = rng.choice(DRUGS), tenths(rng, 12, 95), rng.randint(5, 40)
    cap, parts = 100 * rng.randint(5, 30), rng.choice((2, 3, 4))
    by_weight = dose * weight
    require(by_weight != cap)
    is_capped = by_weight > cap
    daily = min(by_weight, Fraction(cap))
    each = daily / parts
    then = f"the daily dose is cut to {cap} mg" if is_capped else f"it stays at {show(daily)} mg"
    return of_the_ward(
        rng,
        f"The fictional drug {drug} is given at {dose} mg per kg of body weight a day, at most {cap} mg a day, in {parts} "
        f"equal single doses. How many mg is a single dose for a body weight of {show(weight)} kg, to one decimal place?",
        [
            Step(f"By body weight the daily dose is {dose}*{show(weight)} = {show(by_weight)} mg."),
            Step(f"As {show(by_weight)} {'>' if is_capped else '<'} {cap}, {then}.", hinges(each, by_weight / parts)),
            Step(f"A single dose is {show(daily)}/{parts} {near(each, 1)} mg.", hinges(each, daily)),
        ],
        f"{fixed(each, 1)} mg",
        "The single dose is",
        ("body weight", "daily dose", "single dose"),
        ("mg",),
        "a daily dose is the sum of the single doses of 24 hours",
    )


def clearance(rng: random.Random) -> Problem:
    """Cockcroft and Gault. Passed over: no factor for women; micromoles are taken for milligrams."""
    is_woman, in_moles = rng.random() < 0.5, rng.random() < 0.4
    age, weight, serum = rng.randint(25, 92), rng.randint(45, 110), Fraction(rng.randint(12, 70), 20)
    molar = serum * Fraction("88.4")
    above = (140 - age) * weight
    factor = Fraction("0.85") if is_woman else Fraction(1)
    below = 72 * serum
    rate = factor * above / below
    who, level = ("woman" if is_woman else "man"), f"{show(molar)} micromol/L" if in_moles else f"{show(serum)} mg/dL"
    steps = [Step(f"The serum creatinine is {show(molar)}/88.4 = {show(serum)} mg/dL.", hinges(rate, rate * serum / molar))]
    last = f"For a woman the creatinine clearance is 0.85*{above}/{show(below)} {near(rate, 1)} mL/min."
    return of_the_ward(
        rng,
        "Estimate a creatinine clearance by the formula (140 - age in years)*(weight in kg)/(72*serum creatinine in mg/dL), "
        f"in mL/min; for women the result is multiplied by 0.85. A {who} of {age} years weighs {weight} kg and has a serum "
        f"creatinine of {level}"
        + (", where 88.4 micromol/L are 1 mg/dL" if in_moles else "")
        + ". What is the clearance, in mL/min to one decimal place?",
        [
            *(steps if in_moles else []),
            Step(f"The age goes into the formula as 140-{age} = {140 - age}."),
            Step(f"By the weight that is {140 - age}*{weight} = {above}."),
            Step(f"Below the line the serum creatinine gives 72*{show(serum)} = {show(below)}."),
            Step(last, hinges(rate, above / below))
            if is_woman
            else Step(f"For a man the creatinine clearance is {above}/{show(below)} {near(rate, 1)} mL/min."),
        ],
        f"{fixed(rate, 1)} mL/min",
        "The estimated clearance is",
        ("creatinine clearance", "serum creatinine"),
        ("mL/min", "ml/min"),
        "the formula is the one given in the question",
    )


def dilution(rng: random.Random) -> Problem:
    """C1*V1 = C2*V2, and what is to be added. Passed over: the volume of the stock solution stays in."""
    drug, stock, goal = rng.choice(DRUGS), rng.randint(4, 60), Fraction(rng.randint(2, 40), 4)
    volume = 5 * rng.randint(2, 60)
    require(goal < stock)
    amount = goal * volume
    taken = amount / stock
    added = volume - taken
    return of_the_ward(
        rng,
        f"From a stock solution of the fictional drug {drug} with {stock} mg/mL, {volume} mL of a solution with {show(goal)} "
        "mg/mL are to be made. What volume of diluent is needed, in mL to one decimal place?",
        [
            Step(f"The solution is to hold {show(goal)}*{volume} = {show(amount)} mg."),
            Step(f"The stock solution for it measures {show(amount)}/{stock} {near(taken, 1)} mL."),
            Step(f"The diluent fills up the rest, {volume}-{fixed(taken, 1)} = {fixed(added, 1)} mL.", hinges(added, volume)),
        ],
        f"{fixed(added, 1)} mL",
        "The volume of diluent is",
        ("stock solution", "diluent"),
        ("mL", "ml"),
        "volumes add up when solutions are mixed",
    )


def percent_solution(rng: random.Random) -> Problem:
    """A dose from a solution in percent. Passed over: grams are taken for milligrams."""
    drug, weight, dose, percent = rng.choice(DRUGS), rng.randint(9, 98), tenths(rng, 1, 9), Fraction(rng.randint(1, 20), 2)
    needed, strength = dose * weight, percent * 10
    volume = needed / strength
    return of_the_ward(
        rng,
        f"A patient of {weight} kg is to get {show(dose)} mg of the fictional drug {drug} per kg. There is a solution of "
        f"{show(percent)} %, where 1 % means 1 g in 100 mL. What volume is to be drawn up, in mL to one decimal place?",
        [
            Step(f"The dose is {show(dose)}*{weight} = {show(needed)} mg."),
            Step(f"The concentration is {show(percent)}*1000/100 = {show(strength)} mg per mL.", hinges(volume, volume * 1000)),
            Step(f"The volume with this dose is {show(needed)}/{show(strength)} {near(volume, 1)} mL."),
        ],
        f"{fixed(volume, 1)} mL",
        "The volume to draw up is",
        ("dose", "concentration", "volume"),
        ("mL", "ml"),
        "1 g = 1000 mg",
    )


def course(rng: random.Random) -> Problem:
    """Packs for a course that tapers off. Passed over: an opened pack is left out."""
    drug, often, days = rng.choice(DRUGS), rng.randint(2, 4), rng.randint(5, 21)
    many, rest, size = rng.randint(2, 3), rng.randint(4, 28), rng.choice((10, 14, 20, 28, 30))
    first = often * many * days
    total = first + rest
    packs = -(-total // size)
    require(packs > 1)
    less = f"{packs - 1} packs hold {packs - 1}*{size} = {(packs - 1) * size} tablets"
    return of_the_ward(
        rng,
        f"A course of the fictional drug {drug} begins with {many} tablets {often} times a day for {days} days and tapers off "
        f"with 1 tablet a day for {rest} days. A pack holds {size} tablets. How many packs does the course take?",
        [
            Step(f"A day of the first part takes {often}*{many} = {often * many} tablets."),
            Step(f"The first part takes {often * many}*{days} = {first} tablets."),
            Step(f"With the taper the course takes {first}+{rest} = {total} tablets."),
            Step(
                f"As {less} and {packs} packs hold {packs}*{size} = {packs * size}, the course takes {packs}.",
                hinges(packs, total // size),
            ),
        ],
        f"{packs} packs",
        "The course takes",
        ("course", "taper"),
        ("packs",),
        "packs are not divided",
    )


TEMPLATES: tuple[Template, ...] = (capped_dose, single_dose, clearance, dilution, percent_solution, course)
