"""Infusions and their rates. The drugs are made up, and every rule that is used stands in the question."""

from __future__ import annotations

import random
from fractions import Fraction

from engine.data.samples.medicine import DRUGS, of_the_ward
from engine.data.samples.problem import Problem, Step, Template, fixed, hinges, near, require, show


def drip(rng: random.Random) -> Problem:
    """Drops per minute. Passed over: hours are taken for minutes."""
    fluid = rng.choice(("saline", "Ringer's solution", "glucose solution", "a maintenance fluid"))
    volume, hours, factor = 25 * rng.randint(4, 40), Fraction(rng.randint(2, 24), 2), rng.choice((15, 20, 60))
    minutes = 60 * hours
    drops = volume * factor
    rate = drops / minutes
    require(5 < rate < 200)
    return of_the_ward(
        rng,
        f"{volume} mL of {fluid} are to run in over {show(hours)} hours. The drip set gives {factor} drops per mL. What drip "
        "rate is to be set, in drops/min to the whole number?",
        [
            Step(f"The time is {show(hours)}*60 = {show(minutes)} min.", hinges(rate, rate * 60)),
            Step(f"The volume makes {volume}*{factor} = {drops} drops."),
            Step(f"The drip rate is {drops}/{show(minutes)} {near(rate, 0)} drops/min."),
        ],
        f"{fixed(rate, 0)} drops/min",
        "The drip rate is",
        ("drip rate", "volume"),
        ("drops/min", "drops per minute", "gtt/min"),
        "1 h = 60 min",
        "a drop is not divided",
    )


def syringe_pump(rng: random.Random) -> Problem:
    """From micrograms per kg and minute to mL/h. Passed over: minutes are taken for hours; micrograms for mg."""
    drug, weight, rate = rng.choice(DRUGS), rng.randint(40, 110), Fraction(rng.randint(1, 60), 10)
    amount, volume = rng.choice(((50, 50), (100, 50), (200, 50), (250, 50), (50, 20), (40, 40), (80, 40), (25, 50)))
    strength = Fraction(amount, volume)
    minute = rate * weight
    hour = minute * 60
    milligrams = hour / 1000
    speed = milligrams / strength
    require(Fraction(1, 2) < speed < 60)
    return of_the_ward(
        rng,
        f"The fictional drug {drug} is to run at {show(rate)} micrograms per kg of body weight per minute; the body weight is "
        f"{weight} kg. The syringe holds {amount} mg in {volume} mL. What infusion rate is to be set, in mL/h to one decimal "
        "place?",
        [
            Step(f"For the body weight of {weight} kg it is {show(rate)}*{weight} = {show(minute)} micrograms per minute."),
            Step(f"In an hour that makes {show(minute)}*60 = {show(hour)} micrograms.", hinges(speed, speed / 60)),
            Step(f"In mg it is {show(hour)}/1000 = {show(milligrams)} mg per hour.", hinges(speed, speed * 1000)),
            Step(f"The concentration is {amount}/{volume} = {show(strength)} mg per mL."),
            Step(f"The infusion rate is {show(milligrams)}/{show(strength)} {near(speed, 1)} mL/h."),
        ],
        f"{fixed(speed, 1)} mL/h",
        "The infusion rate is",
        ("body weight", "concentration", "infusion rate"),
        ("mL/h", "ml/h"),
        "1 h = 60 min",
        "1 mg = 1000 micrograms",
    )


def changed_rate(rng: random.Random) -> Problem:
    """How long an infusion takes when its rate is changed. Passed over: the first rate to the end; hours for minutes."""
    volume, first, second = 50 * rng.randint(5, 30), 5 * rng.randint(8, 40), 5 * rng.randint(8, 40)
    so_far = first * rng.choice((20, 30, 40, 60, 80, 90, 120)) // 60
    early = Fraction(60 * so_far, first)
    require(first != second and early.denominator == 1 and 0 < so_far < volume - 20)
    left = volume - so_far
    late = Fraction(60 * left, second)
    total = early + late
    return of_the_ward(
        rng,
        f"An infusion of {volume} mL starts at an infusion rate of {first} mL/h. After {so_far} mL the rate is set to {second} "
        "mL/h. How long does the whole infusion take, in min to the whole minute?",
        [
            Step(f"At the first infusion rate it runs for 60*{so_far}/{first} = {early} min."),
            Step(
                f"The volume left for the new infusion rate is {volume}-{so_far} = {left} mL.",
                hinges(total, Fraction(60 * volume, first)),
            ),
            Step(f"This volume takes 60*{left}/{second} {near(late, 0)} min."),
            Step(f"The infusion takes {early}+{fixed(late, 0)} = {fixed(total, 0)} min."),
        ],
        f"{fixed(total, 0)} min",
        "The infusion takes",
        ("infusion rate", "volume"),
        ("min", "minutes"),
        "1 h = 60 min",
    )


TEMPLATES: tuple[Template, ...] = (drip, syringe_pump, changed_rate)
