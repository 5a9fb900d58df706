"""Word problems of two to four steps, as an early arithmetic book has them. Every number is whole."""

from __future__ import annotations

import random

from engine.data.samples.problem import NAMES, Problem, Template, require, unmarked

_THINGS = ("pencils", "apples", "stickers", "marbles", "postcards", "shells", "buttons", "cookies", "stamps", "beads")


def boxes(rng: random.Random) -> Problem:
    """Filled boxes, from which some things are given away."""
    name, thing, count, each = rng.choice(NAMES), rng.choice(_THINGS), rng.randint(3, 12), rng.randint(4, 15)
    total = count * each
    given = rng.randint(2, total - 2)
    return unmarked(
        f"{name} has {count} boxes with {each} {thing} in each and gives away {given}. How many {thing} are left?",
        [
            f"The boxes hold {count}*{each} = {total} {thing}.",
            f"Without those given away there are {total}-{given} = {total - given}.",
        ],
        str(total - given),
        f"The number of {thing} left is {total - given}.",
    )


def change(rng: random.Random) -> Problem:
    """Paying for tickets."""
    name, count, price = rng.choice(NAMES), rng.randint(2, 9), rng.randint(2, 15)
    what = rng.choice(("tickets", "notebooks", "paperbacks", "plants", "jars of honey"))
    cost = count * price
    paid = cost + rng.randint(1, 50)
    return unmarked(
        f"{name} buys {count} {what} at ${price} each and pays with ${paid}. How many dollars come back?",
        [f"The {what} cost {count}*{price} = {cost} dollars.", f"The change is {paid}-{cost} = {paid - cost} dollars."],
        str(paid - cost),
        f"The change in dollars is {paid - cost}.",
    )


def journey(rng: random.Random) -> Problem:
    """Hours at a speed, and some way more."""
    name, speed, hours, rest = rng.choice(NAMES), rng.randint(20, 90), rng.randint(2, 8), rng.randint(5, 95)
    first = speed * hours
    return unmarked(
        f"{name} drives {hours} hours at {speed} km per hour, then {rest} km more. How many kilometres is that?",
        [
            f"In the first part {name} drives {speed}*{hours} = {first} km.",
            f"Together that is {first}+{rest} = {first + rest} km.",
        ],
        str(first + rest),
        f"The whole way in kilometres is {first + rest}.",
    )


def sharing(rng: random.Random) -> Problem:
    """What two days bring, parted equally."""
    name, thing, friends, each = rng.choice(NAMES), rng.choice(_THINGS), rng.randint(2, 9), rng.randint(3, 20)
    total = friends * each
    first = rng.randint(2, total - 2)
    return unmarked(
        f"{name} finds {first} {thing} in the morning and {total - first} in the afternoon and shares them equally among "
        f"{friends} friends. How many {thing} does each friend get?",
        [
            f"Together there are {first}+{total - first} = {total} {thing}.",
            f"Each friend gets {total}/{friends} = {each} {thing}.",
        ],
        str(each),
        f"The number of {thing} for each friend is {each}.",
    )


def saving(rng: random.Random) -> Problem:
    """Money put aside week by week."""
    name, weekly, weeks, start = rng.choice(NAMES), rng.randint(3, 25), rng.randint(3, 12), rng.randint(5, 60)
    saved = weekly * weeks
    spent = rng.randint(1, start + saved - 1)
    left = start + saved - spent
    return unmarked(
        f"{name} has ${start}, saves ${weekly} a week for {weeks} weeks and spends ${spent}. How many dollars are left?",
        [
            f"The savings are {weekly}*{weeks} = {saved} dollars.",
            f"With what was there it is {start}+{saved} = {start + saved} dollars.",
            f"After spending, {start + saved}-{spent} = {left} dollars are left.",
        ],
        str(left),
        f"The number of dollars left is {left}.",
    )


def reading(rng: random.Random) -> Problem:
    """Working days and weekends."""
    name, weekday, weekend, weeks = rng.choice(NAMES), rng.randint(4, 30), rng.randint(10, 60), rng.randint(2, 9)
    week = 5 * weekday + 2 * weekend
    return unmarked(
        f"{name} reads {weekday} pages a day from Monday to Friday and {weekend} pages a day on Saturday and Sunday. How many "
        f"pages does {name} read in {weeks} weeks?",
        [
            f"From Monday to Friday {name} reads 5*{weekday} = {5 * weekday} pages.",
            f"At the weekend it is 2*{weekend} = {2 * weekend} pages.",
            f"In a week that makes {5 * weekday}+{2 * weekend} = {week} pages.",
            f"In {weeks} weeks it is {week}*{weeks} = {week * weeks} pages.",
        ],
        str(week * weeks),
        f"The number of pages in {weeks} weeks is {week * weeks}.",
    )


def fence(rng: random.Random) -> Problem:
    """A fence with a gate."""
    place = rng.choice(("garden", "paddock", "playground", "vegetable plot"))
    length, width, gate, price = rng.randint(8, 60), rng.randint(5, 40), rng.randint(1, 4), rng.randint(3, 25)
    around = 2 * (length + width)
    cost = (around - gate) * price
    return unmarked(
        f"A rectangular {place} is {length} m long and {width} m wide. A fence is to run around it, leaving a gap of {gate} m "
        f"for the gate. One metre of fence costs ${price}. How many dollars does the fence cost?",
        [
            f"The way around is 2*({length}+{width}) = {around} m.",
            f"Without the gap the fence is {around}-{gate} = {around - gate} m long.",
            f"It costs {around - gate}*{price} = {cost} dollars.",
        ],
        str(cost),
        f"The price of the fence in dollars is {cost}.",
    )


def recipe(rng: random.Random) -> Problem:
    """A recipe for more people than it was written for."""
    name, people, each = rng.choice(NAMES), rng.randint(2, 6), 5 * rng.randint(5, 30)
    what, guests = rng.choice(("flour", "rice", "lentils", "potatoes", "pasta")), rng.randint(3, 24)
    require(guests != people)
    needed = each * guests
    there = 5 * rng.randint(4, needed // 5 - 1)
    return unmarked(
        f"A recipe for {people} people takes {people * each} g of {what}. {name} cooks it for {guests} people and has {there} "
        f"g of {what}. How many grams of {what} are missing?",
        [
            f"One person needs {people * each}/{people} = {each} g of {what}.",
            f"For all of them that is {each}*{guests} = {needed} g.",
            f"The amount that is missing is {needed}-{there} = {needed - there} g.",
        ],
        str(needed - there),
        f"The missing amount of {what} in grams is {needed - there}.",
    )


def seats(rng: random.Random) -> Problem:
    """A hall that is not full."""
    rows, each, adults = rng.randint(6, 30), rng.randint(8, 30), rng.randint(10, 99)
    children = rng.randint(10, 80)
    sold, total = adults + children, rows * each
    require(sold < total)
    event = rng.choice(("a concert", "a puppet show", "a film evening", "a lecture", "the school play"))
    return unmarked(
        f"A hall has {rows} rows of {each} seats. For {event}, {adults} adults and {children} children have a seat. How many "
        "seats stay empty?",
        [
            f"The hall has {rows}*{each} = {total} seats.",
            f"The number of seats taken is {adults}+{children} = {sold}.",
            f"The number of empty ones is {total}-{sold} = {total - sold}.",
        ],
        str(total - sold),
        f"The number of empty seats is {total - sold}.",
    )


TEMPLATES: tuple[Template, ...] = (boxes, change, journey, sharing, saving, reading, fence, recipe, seats)
