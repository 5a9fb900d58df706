"""Chains in which some steps decide: a unit conversion, a threshold, a case, the formula that fits.

Each such step is marked by `hinges`, which compares the answer with that of a reader who passes the step over: who adds grams to
kilograms, looks at no threshold, takes the plain mean. A step that would change the answer by a tenth or more is marked 1, one
that changes it by less 0.5, and a check that turns out to change nothing 0, as are the routine steps. The marks follow from the
numbers of each row; a draw in which nothing decides is thrown away.
"""

from __future__ import annotations

import random
from fractions import Fraction

from engine.data.samples.problem import (
    NAMES,
    Problem,
    Step,
    Template,
    decided,
    fixed,
    hinges,
    hundredths,
    money,
    require,
    show,
)


def parcels(rng: random.Random) -> Problem:
    """Grams into kilograms, then a tariff by weight. Passed over: grams are taken for kilograms; the lower rate."""
    thing = rng.choice(("books", "candles", "mugs", "jars of jam", "puzzles"))
    count, each, grams, packing = rng.randint(2, 30), rng.randint(2, 9), 10 * rng.randint(12, 60), 10 * rng.randint(5, 40)
    limit, low = rng.choice((1, 2, 3)), hundredths(rng, 3, 6)
    high = low + hundredths(rng, 1, 5)
    weight = each * grams + packing
    kilograms = Fraction(weight, 1000)
    require(kilograms != limit)
    heavy = kilograms > limit
    rate = high if heavy else low
    cost = count * rate
    return decided(
        f"A shop sends {count} parcels, each with {each} {thing} of {grams} g and {packing} g of packaging. A parcel of up to "
        f"{limit} kg costs {money(low)} euros, a heavier one {money(high)} euros. How many euros does the postage cost in all, "
        "to the cent?",
        [
            Step(f"The {thing} in a parcel weigh {each}*{grams} = {each * grams} g."),
            Step(f"With the packaging a parcel weighs {each * grams}+{packing} = {weight} g."),
            Step(f"In kilograms that is {weight}/1000 = {show(kilograms)} kg.", hinges(cost, count * high)),
            Step(
                f"As {show(kilograms)} {'>' if heavy else '<'} {limit}, a parcel costs {money(rate)} euros.",
                hinges(cost, count * low),
            ),
            Step(f"All parcels together cost {count}*{money(rate)} = {fixed(cost, 2)} euros."),
        ],
        fixed(cost, 2),
        f"The postage in euros is {fixed(cost, 2)}.",
    )


def order(rng: random.Random) -> Problem:
    """A discount above one amount, free delivery above another. Passed over: no discount; delivery is paid."""
    first, second = rng.sample(("chairs", "lamps", "shelves", "rugs", "cushions", "mirrors"), 2)
    many, price, few, other = rng.randint(2, 12), rng.randint(15, 60), rng.randint(1, 9), rng.randint(8, 45)
    above, percent = 50 * rng.randint(3, 10), rng.choice((5, 8, 10, 12, 15))
    free, delivery = 50 * rng.randint(3, 10), rng.randint(6, 29)
    gross = many * price + few * other
    require(gross != above)
    has_discount = gross > above
    net = Fraction(gross * (100 - percent), 100) if has_discount else Fraction(gross)
    is_free = net >= free
    total = net if is_free else net + delivery
    undiscounted = gross if gross >= free else gross + delivery
    steps = [
        Step(f"The {first} cost {many}*{price} = {many * price} euros."),
        Step(f"The {second} cost {few}*{other} = {few * other} euros."),
        Step(f"Together that is {many * price}+{few * other} = {gross} euros."),
    ]
    if has_discount:
        steps.append(Step(f"As {gross} > {above}, the price is lowered by {percent} percent.", hinges(total, undiscounted)))
        steps.append(Step(f"That leaves {gross}*(100-{percent})/100 = {money(net)} euros for the goods."))
    else:
        steps.append(Step(f"As {gross} < {above}, there is no discount and the goods cost {gross} euros."))
    sign, fee = (">=", 0) if is_free else ("<", delivery)
    steps.append(Step(f"As {money(net)} {sign} {free}, delivery costs {fee} euros.", hinges(total, net + delivery)))
    steps.append(Step(f"The amount to pay is {money(net)}+{fee} = {fixed(total, 2)} euros."))
    return decided(
        f"{rng.choice(NAMES)} orders {many} {first} at {price} euros each and {few} {second} at {other} euros each. Goods for "
        f"more than {above} euros are sold at {percent} % off. Delivery costs {delivery} euros, but nothing if the goods, "
        f"after any discount, still cost {free} euros or more. How many euros are to be paid, to the cent?",
        steps,
        fixed(total, 2),
        f"The amount to pay in euros is {fixed(total, 2)}.",
    )


def overtime(rng: random.Random) -> Problem:
    """Hours beyond a limit are paid better. Passed over: all hours are paid alike."""
    name, wage, limit, percent = rng.choice(NAMES), rng.randint(13, 32), rng.choice((35, 38, 40)), rng.choice((25, 50, 75, 100))
    long, hours, short, less = rng.randint(2, 4), rng.randint(9, 12), rng.randint(1, 3), rng.randint(4, 8)
    total = long * hours + short * less
    require(total > limit)
    over = total - limit
    extra = over * wage * Fraction(100 + percent, 100)
    pay = limit * wage + extra
    return decided(
        f"{name} works {long} days of {hours} hours and {short} days of {less} hours in one week, for {wage} euros an hour. "
        f"Hours beyond {limit} in a week are paid {percent} % more. How many euros does {name} earn in that week, to the cent?",
        [
            Step(f"The long days make {long}*{hours} = {long * hours} hours."),
            Step(f"The short days make {short}*{less} = {short * less} hours."),
            Step(f"Together that is {long * hours}+{short * less} = {total} hours."),
            Step(f"As {total} > {limit}, the overtime is {total}-{limit} = {over} hours.", hinges(pay, total * wage)),
            Step(f"The first {limit} hours earn {limit}*{wage} = {limit * wage} euros."),
            Step(f"The overtime earns {over}*{wage}*(100+{percent})/100 = {money(extra)} euros."),
            Step(f"The week's pay is {limit * wage}+{money(extra)} = {fixed(pay, 2)} euros."),
        ],
        fixed(pay, 2),
        f"The week's pay in euros is {fixed(pay, 2)}.",
    )


def electricity(rng: random.Random) -> Problem:
    """Two prices by consumption, in cents. Passed over: the first price for all; cents are taken for euros."""
    limit, first = 50 * rng.randint(2, 12), rng.randint(22, 38)
    second, fee = first + rng.choice((-9, -7, -5, 4, 6, 8, 11)), rng.randint(5, 19)
    before, used = rng.randint(1000, 60000), rng.randint(80, 900)
    require(used != limit)
    over = max(0, used - limit)
    cents = (used - over) * first + over * second
    total = Fraction(cents, 100) + fee
    steps = [Step(f"The consumption is {before + used}-{before} = {used} kWh.")]
    if over:
        steps += [
            Step(
                f"As {used} > {limit}, the part at the other price is {used}-{limit} = {over} kWh.",
                hinges(total, Fraction(used * first, 100) + fee),
            ),
            Step(f"The first part costs {limit}*{first} = {limit * first} cents."),
            Step(f"The rest costs {over}*{second} = {over * second} cents."),
            Step(f"Together that is {limit * first}+{over * second} = {cents} cents."),
        ]
    else:
        steps += [
            Step(f"As {used} < {limit}, the first price holds for all of it, {first} cents."),
            Step(f"The consumption costs {used}*{first} = {cents} cents."),
        ]
    return decided(
        f"The first {limit} kWh of a month cost {first} cents each, every further one {second} cents, and there is a fee of "
        f"{fee} euros. At the start of the month the meter shows {before} kWh, at its end {before + used} kWh. How many euros "
        "is the bill, to the cent?",
        [
            *steps,
            Step(f"In euros that is {cents}/100 = {money(Fraction(cents, 100))}.", hinges(total, cents + fee)),
            Step(f"With the fee the bill is {money(Fraction(cents, 100))}+{fee} = {fixed(total, 2)} euros."),
        ],
        fixed(total, 2),
        f"The bill in euros is {fixed(total, 2)}.",
    )


def sale(rng: random.Random) -> Problem:
    """Percent of what was changed by percent. Passed over: the cut is taken of the first price."""
    thing, price = rng.choice(("coat", "table", "tent", "bicycle", "cello", "telescope")), 20 * rng.randint(4, 90)
    up, down, voucher = rng.choice((5, 10, 15, 20, 25, 30)), rng.choice((10, 15, 20, 30, 40)), rng.choice((5, 10, 15, 20))
    rise = Fraction(price * up, 100)
    raised = price + rise
    cut = raised * down / 100
    end = raised - cut - voucher
    return decided(
        f"The price of a {thing}, {price} euros, is raised by {up} %. Later the {thing} is sold at {down} % off, and "
        f"{rng.choice(NAMES)} pays with a voucher for {voucher} euros and cash. How many euros of cash are needed, to the cent?",
        [
            Step(f"The price rises by {price}*{up}/100 = {money(rise)} euros."),
            Step(f"The new price is {price}+{money(rise)} = {money(raised)} euros."),
            Step(
                f"The cut is taken of the new price, {money(raised)}*{down}/100 = {money(cut)} euros.",
                hinges(end, raised - Fraction(price * down, 100) - voucher),
            ),
            Step(f"The sale price is {money(raised)}-{money(cut)} = {money(raised - cut)} euros."),
            Step(f"In cash that is {money(raised - cut)}-{voucher} = {fixed(end, 2)} euros.", hinges(end, raised - cut)),
        ],
        fixed(end, 2),
        f"The cash needed in euros is {fixed(end, 2)}.",
    )


def excursion(rng: random.Random) -> Problem:
    """Coaches for the last few, and a group price. Passed over: only full coaches; the single price."""
    pupils, teachers, size, hire = (
        rng.randint(40, 260),
        rng.randint(3, 16),
        rng.choice((38, 44, 48, 52)),
        10 * rng.randint(30, 75),
    )
    enough, single, group = 10 * rng.randint(8, 20), rng.randint(8, 16), rng.randint(4, 7)
    people = pupils + teachers
    full, rest = divmod(people, size)
    coaches = full + (rest > 0)
    is_group = people >= enough
    price = group if is_group else single
    cost = coaches * hire + people * price
    needs = (
        f"{rest} people remain and the coaches number {full}+1 = {coaches}"
        if rest
        else f"nobody remains and the coaches number {full}"
    )
    return decided(
        f"{pupils} pupils and {teachers} teachers travel in coaches of {size} seats that cost {hire} euros each. The museum "
        f"takes {single} euros a person, or {group} euros a person from groups of {enough} or more. How many euros does the "
        "excursion cost?",
        [
            Step(f"The travellers are {pupils}+{teachers} = {people} people."),
            Step(f"As {full}*{size} = {full * size}, {needs}.", hinges(cost, full * hire + people * price)),
            Step(f"The coaches cost {coaches}*{hire} = {coaches * hire} euros."),
            Step(
                f"As {people} {'>=' if is_group else '<'} {enough}, the price of a person is {price} euros.",
                hinges(cost, coaches * hire + people * single),
            ),
            Step(f"The museum takes {people}*{price} = {people * price} euros."),
            Step(f"The excursion costs {coaches * hire}+{people * price} = {cost} euros."),
        ],
        str(cost),
        f"The cost in euros is {cost}.",
    )


TEMPLATES: tuple[Template, ...] = (parcels, order, overtime, electricity, sale, excursion)
