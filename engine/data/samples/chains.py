"""Chains of four to seven steps about quantities: mixtures, timetables, rates. Some grow or shrink with their draw."""

from __future__ import annotations

import random
from fractions import Fraction

from engine.data.samples.problem import Problem, Template, fixed, listed, near, require, show, unmarked


def mixture(rng: random.Random) -> Problem:
    """Two or three liquids of different strength, at times with water."""
    place, liquid, part = rng.choice(
        (
            ("A dairy", "milk", "fat"),
            ("A juice plant", "juice", "sugar"),
            ("A paint shop", "paint", "pigment"),
            ("A laboratory", "brine", "salt"),
            ("A perfumery", "tincture", "oil"),
        )
    )
    count = rng.choice((2, 3))
    litres = [rng.randint(2, 40) for _ in range(count)]
    percents = rng.sample([Fraction(half, 2) for half in range(2, 50)], count)
    water = rng.choice((0, rng.randint(1, 12)))
    pure = [amount * percent / 100 for amount, percent in zip(litres, percents, strict=True)]
    parts = [f"{amount} L of {liquid} with {show(percent)} % {part}" for amount, percent in zip(litres, percents, strict=True)]
    total = sum(litres) + water
    held = sum(pure, Fraction(0))
    share = 100 * held / total
    amounts = [*map(str, litres), *([str(water)] if water else [])]
    return unmarked(
        f"{place} mixes {listed(parts)}{f' and adds {water} L of water' if water else ''}. What is the share of {part} in the "
        "mixture, in percent to one decimal place?",
        [
            *(
                f"{amount} L with {show(percent)} % hold {amount}*{show(percent)}/100 = {show(value)} L of {part}."
                for amount, percent, value in zip(litres, percents, pure, strict=True)
            ),
            f"Together that is {'+'.join(map(show, pure))} = {show(held)} L of {part}.",
            f"The mixture measures {'+'.join(amounts)} = {total} L.",
            f"The share of {part} is 100*{show(held)}/{total} {near(share, 1)} percent.",
        ],
        fixed(share, 1),
        f"The share of {part} in percent is {fixed(share, 1)}.",
    )


def timetable(rng: random.Random) -> Problem:
    """Two or three legs with stops between them."""
    vehicle, stop = rng.choice((("A train", "waits"), ("A coach", "stops"), ("A ferry", "lies in port"), ("A lorry", "rests")))
    legs = [
        (minutes := rng.randint(12, 90), speed := rng.choice((20, 30, 40, 45, 48, 60, 75, 80, 90)), minutes * speed)
        for _ in range(rng.choice((2, 3)))
    ]
    require(all(product % 60 == 0 for *_, product in legs))
    stops = [rng.randint(2, 25) for _ in legs[1:]]
    driven, waited = sum(leg[0] for leg in legs), sum(stops)
    told = [f"covers {product // 60} km at {speed} km/h" for _, speed, product in legs]
    story = told[0] + "".join(f", {stop} for {pause} minutes, then {leg}" for pause, leg in zip(stops, told[1:], strict=True))
    steps = [
        f"The way of {product // 60} km takes 60*{product // 60}/{speed} = {minutes} minutes." for minutes, speed, product in legs
    ]
    steps.append(f"Under way it is {'+'.join(str(leg[0]) for leg in legs)} = {driven} minutes.")
    if len(stops) > 1:
        steps.append(f"The stops take {'+'.join(map(str, stops))} = {waited} minutes.")
    steps.append(f"From departure to arrival that makes {driven}+{waited} = {driven + waited} minutes.")
    return unmarked(
        f"{vehicle} {story}. How many minutes after its departure does it arrive?",
        steps,
        str(driven + waited),
        f"The time from departure to arrival in minutes is {driven + waited}.",
    )


def pumps(rng: random.Random) -> Problem:
    """Two pumps, of which one starts later, and at times a leak."""
    what = rng.choice(("tank", "pool", "basin", "cistern"))
    first, second, alone = rng.randint(20, 90), rng.randint(20, 90), rng.randint(5, 40)
    leak = rng.choice((0, rng.randint(2, 15)))
    volume = 50 * rng.randint(60, 300)
    early = (first - leak) * alone
    rate = first + second - leak
    rest = volume - early
    require(rest > 0 and first - leak > 0)
    minutes = Fraction(rest, rate)
    steps = [f"With the leak the first pump brings {first}-{leak} = {first - leak} L per minute."] if leak else []
    both = f"{first - leak}+{second}"
    return unmarked(
        f"A {what} of {volume} L is empty. One pump fills it with {first} L per minute; {alone} minutes later a second one "
        f"joins it with {second} L per minute."
        + (f" All the time {leak} L per minute leak out." if leak else "")
        + f" How many minutes after the first pump was started is the {what} full, to one decimal place?",
        [
            *steps,
            f"In the first {alone} minutes the {what} takes {first - leak}*{alone} = {early} L.",
            f"What is left to fill is {volume}-{early} = {rest} L.",
            f"Both pumps together bring {both} = {rate} L per minute.",
            f"For the rest they need {rest}/{rate} {near(minutes, 1)} minutes.",
            f"From the start that makes {alone}+{fixed(minutes, 1)} = {fixed(alone + minutes, 1)} minutes.",
        ],
        fixed(alone + minutes, 1),
        f"The time in minutes is {fixed(alone + minutes, 1)}.",
    )


def production(rng: random.Random) -> Problem:
    """Parts that are made, inspected and packed."""
    machines, rate, hours, days = rng.randint(2, 9), rng.randint(12, 60), rng.randint(6, 16), rng.randint(2, 12)
    thing, percent, size = (
        rng.choice(("valves", "hinges", "lamps", "gears", "tiles")),
        rng.randint(2, 12),
        rng.choice((24, 36, 48, 60)),
    )
    total = machines * rate * hours * days
    require(total * percent % 100 == 0)
    bad = total * percent // 100
    good = total - bad
    full, over = divmod(good, size)
    require(over > 0)
    return unmarked(
        f"A factory has {machines} machines that each make {rate} {thing} an hour and run {hours} hours a day. {percent} % of "
        f"the {thing} fail the inspection; the others are packed in boxes of {size}. How many full boxes do {days} days give?",
        [
            f"The machines make {machines}*{rate} = {machines * rate} {thing} an hour.",
            f"In a day that is {machines * rate}*{hours} = {machines * rate * hours}.",
            f"In {days} days it is {machines * rate * hours}*{days} = {total}.",
            f"The inspection takes {total}*{percent}/100 = {bad} out.",
            f"The number of good {thing} is {total}-{bad} = {good}.",
            f"As {full}*{size} = {full * size} and {good}-{full * size} = {over} are left over, the full boxes number {full}.",
        ],
        str(full),
        f"The number of full boxes is {full}.",
    )


def lawn(rng: random.Random) -> Problem:
    """Seed by the bag."""
    length, width, pond, dose = rng.randint(20, 80), rng.randint(15, 60), rng.randint(12, 150), rng.choice((20, 25, 30, 35, 40))
    place, size, price = (
        rng.choice(("park", "orchard", "sports ground", "churchyard")),
        rng.choice((5, 10, 15)),
        rng.randint(18, 65),
    )
    area = length * width
    sown = area - pond
    grams = sown * dose
    kilograms = Fraction(grams, 1000)
    bags = int(kilograms / size) + 1
    require(kilograms % size != 0 and bags > 1)
    return unmarked(
        f"A rectangular {place} is {length} m long and {width} m wide; {pond} square metres of it are a pond. The rest is to "
        f"be sown with {dose} g of grass seed per square metre. Seed comes in bags of {size} kg at {price} euros each. How "
        "many euros does it cost?",
        [
            f"The {place} covers {length}*{width} = {area} square metres.",
            f"Without the pond that is {area}-{pond} = {sown} square metres.",
            f"The seed needed is {sown}*{dose} = {grams} g.",
            f"In kilograms that is {grams}/1000 = {show(kilograms)} kg.",
            f"As {bags - 1} bags hold {bags - 1}*{size} = {(bags - 1) * size} kg and {bags} bags hold {bags}*{size} = "
            f"{bags * size} kg, the number to buy is {bags}.",
            f"They cost {bags}*{price} = {bags * price} euros.",
        ],
        str(bags * price),
        f"The price in euros is {bags * price}.",
    )


TEMPLATES: tuple[Template, ...] = (mixture, timetable, pumps, production, lawn)
