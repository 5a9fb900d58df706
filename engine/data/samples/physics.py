"""Calculations of school physics. Constants stand in the question, rounded as they are used."""

from __future__ import annotations

import random
from fractions import Fraction

from engine.data.samples.problem import Field, Problem, Step, Template, fixed, hinges, near, require, show, tenths

_made = Field("physics", ("secondary school", "first-year physics student", "engineering student", "physics teacher")).problem


def decay(rng: random.Random) -> Problem:
    """Whole half-lives. Passed over: the units of time differ; the amount falls in a straight line."""
    what, unit = rng.choice((("activity", "kBq"), ("activity", "MBq"), ("mass", "mg"), ("mass", "g")))
    isotope, count, life = rng.choice("QXYZ") + f"-{rng.randint(60, 240)}", rng.randint(2, 5), 5 * rng.randint(6, 150)
    start = rng.randint(40, 2000)
    whole = count * life
    require(whole % 60 == 0)
    left = Fraction(start, 2**count)
    twos = "*".join(["2"] * count)
    return _made(
        rng,
        f"A sample of the fictional isotope {isotope} has {'an activity' if what == 'activity' else 'a mass'} of {start} "
        f"{unit}. The half-life is {life} minutes. What {what} of {isotope} is left after {whole // 60} hours, in {unit} to "
        "one decimal place?",
        [
            Step(f"The time is {whole // 60}*60 = {whole} minutes.", hinges(left, Fraction(start / 2 ** (whole / 60 / life)))),
            Step(f"It spans {whole}/{life} = {count} times the half-life."),
            Step(
                f"Each half-life leaves one of 2 parts, so the {what} is divided by {twos} = {2**count}.",
                hinges(left, Fraction(start, count)),
            ),
            Step(f"After the decay the {what} is {start}/{2**count} {near(left, 1)} {unit}."),
        ],
        f"{fixed(left, 1)} {unit}",
        f"The {what} left is",
        ("half-life", "decay"),
        (unit,),
        "1 h = 60 min",
    )


def braking(rng: random.Random) -> Problem:
    """Reaction and braking distance. Passed over: km/h are taken for m/s; the distance travelled while reacting."""
    vehicle, metres, delay, slow = (
        rng.choice(("car", "van", "bus", "motorcycle")),
        rng.randint(5, 40),
        tenths(rng, 0, 2),
        tenths(rng, 3, 9),
    )
    speed = Fraction(metres * 36, 10)
    require(delay >= Fraction(1, 2))
    thinking, stopping = metres * delay, Fraction(metres * metres) / (2 * slow)
    total = thinking + stopping
    raw = speed * delay + speed * speed / (2 * slow)
    return _made(
        rng,
        f"A {vehicle} travels at {show(speed)} km/h. Its driver reacts after {show(delay)} s, then brakes with a constant "
        f"deceleration of {show(slow)} m/s². What is the stopping distance from the moment the danger is seen, in m to one "
        "decimal place?",
        [
            Step(f"The speed is {show(speed)}/3.6 = {metres} m/s.", hinges(total, raw)),
            Step(f"The reaction distance is {metres}*{show(delay)} = {show(thinking)} m.", hinges(total, stopping)),
            Step(f"The square of the speed is {metres}*{metres} = {metres * metres}."),
            Step(
                f"With the deceleration, the stopping distance is {show(thinking)}+{metres * metres}/(2*{show(slow)}) "
                f"{near(total, 1)} m."
            ),
        ],
        f"{fixed(total, 1)} m",
        "The stopping distance is",
        ("reaction distance", "deceleration", "stopping distance"),
        ("m", "metres", "meters"),
        "1 m/s = 3.6 km/h",
        "braking distance = speed squared over twice the deceleration",
    )


def acceleration(rng: random.Random) -> Problem:
    """Way under constant acceleration. Passed over: the start velocity; the half of the formula."""
    what = rng.choice(("train", "sledge", "trolley", "glider", "ball on a ramp"))
    start, rate, time = rng.randint(1, 30), tenths(rng, 1, 6), rng.randint(2, 15)
    gained = rate * time * time / 2
    way = start * time + gained
    return _made(
        rng,
        f"A {what} has a velocity of {start} m/s and then accelerates at a constant {show(rate)} m/s² for {time} s. What "
        "distance does it cover in that time, in m to one decimal place?",
        [
            Step(f"At its initial velocity alone it would cover {start}*{time} = {start * time} m.", hinges(way, gained)),
            Step(f"The square of the time is {time}*{time} = {time * time}."),
            Step(
                f"The acceleration adds half of {show(rate)}*{time * time}, that is {show(rate)}*{time * time}/2 = "
                f"{show(gained)} m.",
                hinges(way, start * time + 2 * gained),
            ),
            Step(f"The distance is {start * time}+{show(gained)} {near(way, 1)} m."),
        ],
        f"{fixed(way, 1)} m",
        "The distance is",
        ("initial velocity", "acceleration", "distance"),
        ("m", "metres", "meters"),
        "distance = initial velocity times time, and half the acceleration times time squared",
    )


def gas(rng: random.Random) -> Problem:
    """The gas law between two states. Passed over: degrees Celsius are taken for kelvins."""
    name, vessel = (
        rng.choice(("helium", "nitrogen", "argon", "air", "neon")),
        rng.choice(("balloon", "cylinder with a piston", "bag")),
    )
    first, second = rng.sample(range(5, 121), 2)
    volume, before, after = tenths(rng, 1, 30), 5 * rng.randint(16, 60), 5 * rng.randint(16, 60)
    require(before != after)
    cold, hot = first + 273, second + 273
    result = before * volume * hot / (cold * after)
    return _made(
        rng,
        f"A {vessel} holds {show(volume)} L of {name} at {first} °C and {before} kPa. What volume does the gas take at "
        f"{second} °C and {after} kPa, in L to two decimal places? The temperature in K is that in °C and 273.",
        [
            Step(f"The first absolute temperature is {first}+273 = {cold} K.", hinges(result, result * cold / first)),
            Step(f"The second absolute temperature is {second}+273 = {hot} K.", hinges(result, result * second / hot)),
            Step(f"Pressure times volume is {before}*{show(volume)} = {show(before * volume)} in the first state."),
            Step(f"By the gas law the volume is {show(before * volume)}*{hot}/({cold}*{after}) {near(result, 2)} L."),
        ],
        f"{fixed(result, 2)} L",
        "The volume is",
        ("absolute temperature", "pressure", "gas law"),
        ("L", "l"),
        "the gas is ideal: pressure times volume over absolute temperature stays the same",
    )


def heating(rng: random.Random) -> Problem:
    """Time to heat water. Passed over: the efficiency; the temperature it starts from."""
    mass, cold, hot = tenths(rng, 1, 9), rng.randint(5, 25), rng.randint(40, 95)
    power, percent, vessel = (
        100 * rng.randint(5, 30),
        rng.choice((50, 60, 75, 80, 90)),
        rng.choice(("kettle", "pan", "boiler", "samovar")),
    )
    heat = mass * 4200 * (hot - cold)
    useful = Fraction(power * percent, 100)
    time = heat / useful
    return _made(
        rng,
        f"A {vessel} heats {show(mass)} kg of water from {cold} °C to {hot} °C with an electric power of {power} W, of which "
        f"{percent} % reach the water. The specific heat capacity of water is 4200 J/(kg K). How long does it take, in s to "
        "the whole second?",
        [
            Step(f"The temperature rises by {hot}-{cold} = {hot - cold} K.", hinges(time, mass * 4200 * hot / useful)),
            Step(f"By the specific heat capacity the heat needed is {show(mass)}*4200*{hot - cold} = {show(heat)} J."),
            Step(f"The power that reaches the water is {power}*{percent}/100 = {show(useful)} W.", hinges(time, heat / power)),
            Step(f"The time is {show(heat)}/{show(useful)} {near(time, 0)} s."),
        ],
        f"{fixed(time, 0)} s",
        "The heating time is",
        ("specific heat capacity", "heat", "power"),
        ("s", "seconds"),
        "1 W = 1 J/s",
    )


def lifting(rng: random.Random) -> Problem:
    """Work and energy in kWh or kJ. Passed over: grams; joules are taken for kilojoules."""
    what = rng.choice(("crane", "lift", "winch", "cable car", "hoist"))
    mass, height, times = rng.randint(40, 1800), rng.randint(3, 60), rng.randint(2, 40)
    weight = mass * Fraction("9.81")
    once = weight * height
    total = once * times
    kilo = total / 1000
    return _made(
        rng,
        f"A {what} lifts a load of {mass} kg by {height} m, {times} times in all. Take the gravitational acceleration as 9.81 "
        "m/s². What energy does the lifting take, in kJ to one decimal place?",
        [
            Step(f"With the gravitational acceleration the load weighs {mass}*9.81 = {show(weight)} N."),
            Step(f"One lift takes the potential energy {show(weight)}*{height} = {show(once)} J."),
            Step(f"All the lifts take {show(once)}*{times} = {show(total)} J."),
            Step(f"In kilojoules this energy is {show(total)}/1000 {near(kilo, 1)} kJ.", hinges(kilo, total)),
        ],
        f"{fixed(kilo, 1)} kJ",
        "The energy is",
        ("gravitational acceleration", "potential energy"),
        ("kJ", "kilojoules"),
        "1 kJ = 1000 J",
        "friction is neglected",
    )


TEMPLATES: tuple[Template, ...] = (decay, braking, acceleration, gas, heating, lifting)
