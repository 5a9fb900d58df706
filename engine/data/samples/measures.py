"""Chains in which a unit or a formula decides; their steps are marked as those of decisive.py."""

from __future__ import annotations

import random
from fractions import Fraction

from engine.data.samples.problem import NAMES, Problem, Step, Template, decided, fixed, hinges, near, require, show


def there_and_back(rng: random.Random) -> Problem:
    """Average speed over a way: distance over time. Passed over: the mean of the two speeds."""
    name, way = rng.choice(NAMES), rng.randint(4, 180)
    out, back = rng.sample((6, 8, 10, 12, 15, 16, 18, 20, 24, 25, 30, 36, 40, 45, 48, 50, 60, 72, 75, 80), 2)
    going, coming = Fraction(60 * way, out), Fraction(60 * way, back)
    require(going.denominator == coming.denominator == 1)
    speed = Fraction(2 * way * 60) / (going + coming)
    return decided(
        f"{name} goes {way} km to {rng.choice(('a lake', 'a fair', 'the sea', 'a castle', 'a friend', 'a market'))} at {out} "
        f"km/h and comes back the same way at {back} km/h. What is the average speed over the whole way, in km/h to one "
        "decimal place?",
        [
            Step(f"Going takes 60*{way}/{out} = {going} minutes."),
            Step(f"Coming back takes 60*{way}/{back} = {coming} minutes."),
            Step(f"The whole way is 2*{way} = {2 * way} km."),
            Step(
                f"The average is not the mean of the speeds but way over time, and the time is {going}+{coming} = "
                f"{going + coming} minutes.",
                hinges(speed, Fraction(out + back, 2)),
            ),
            Step(f"In km per hour that is 60*{2 * way}/{going + coming} {near(speed, 1)}."),
        ],
        fixed(speed, 1),
        f"The average speed in km/h is {fixed(speed, 1)}.",
    )


def plan(rng: random.Random) -> Problem:
    """An area on a plan: the scale counts twice. Passed over: it counts once; the area is divided as a length is."""
    what, yields = rng.choice(
        (("field", "sacks of barley"), ("meadow", "bales of hay"), ("clearing", "saplings"), ("bog", "sacks of peat"))
    )
    long, wide, scale, each = rng.randint(3, 25), rng.randint(2, 20), rng.choice((400, 500, 1000, 2000)), rng.randint(2, 9)
    drawn = long * wide
    square = scale * scale
    metres = drawn * square // 10_000
    require(metres * each % 100 == 0)
    total = metres * each // 100
    return decided(
        f"On a plan at a scale of 1:{scale} a rectangular {what} measures {long} cm by {wide} cm. Every 100 square metres yield "
        f"{each} {yields}. How many {yields} does the {what} yield?",
        [
            Step(f"On the plan the {what} covers {long}*{wide} = {drawn} square centimetres."),
            Step(f"An area grows by the scale twice, {scale}*{scale} = {square}.", hinges(total, Fraction(total, scale))),
            Step(f"In truth it covers {drawn}*{square} = {drawn * square} square centimetres."),
            Step(
                f"A square metre has 100*100 of those, so there are {drawn * square}/(100*100) = {metres} square metres.",
                hinges(total, total * 100),
            ),
            Step(f"They yield {metres}*{each}/100 = {total} {yields}."),
        ],
        str(total),
        f"The number of {yields} is {total}.",
    )


def pool(rng: random.Random) -> Problem:
    """Centimetres, cubic metres and litres. Passed over: centimetres are taken for metres; cubic metres for litres."""
    what = rng.choice(("paddling pool", "fish tank", "trough", "basin"))
    length, width, depth, rate = rng.randint(2, 12), rng.randint(2, 8), 5 * rng.randint(6, 40), rng.randint(8, 60)
    metres = Fraction(depth, 100)
    volume = length * width * metres
    minutes = volume * 1000 / rate
    return decided(
        f"A {what} is {length} m long, {width} m wide and {depth} cm deep. A hose brings {rate} L of water per minute. How "
        "many minutes does it take to fill it, to one decimal place?",
        [
            Step(f"The depth is {depth}/100 = {show(metres)} m.", hinges(minutes, minutes * 100)),
            Step(f"The {what} holds {length}*{width}*{show(metres)} = {show(volume)} cubic metres."),
            Step(f"In litres that is {show(volume)}*1000 = {show(volume * 1000)} L.", hinges(minutes, minutes / 1000)),
            Step(f"To fill it takes {show(volume * 1000)}/{rate} {near(minutes, 1)} minutes."),
        ],
        fixed(minutes, 1),
        f"The time in minutes is {fixed(minutes, 1)}.",
    )


TEMPLATES: tuple[Template, ...] = (there_and_back, plan, pool)
