"""Chains of four to seven steps about money: budgets, shares, interest, wages."""

from __future__ import annotations

import random
from fractions import Fraction

from engine.data.samples.problem import (
    NAMES,
    Problem,
    Template,
    fixed,
    hundredths,
    money,
    near,
    require,
    show,
    tenths,
    unmarked,
)


def budget(rng: random.Random) -> Problem:
    """Months of saving until something can be bought."""
    name, income, percent = rng.choice(NAMES), 100 * rng.randint(14, 42), rng.choice((20, 25, 30, 35, 40))
    weekly, other = rng.randint(45, 120), 5 * rng.randint(20, 90)
    what, price = rng.choice(
        (("a bicycle", 690), ("a piano", 2950), ("a camera", 1240), ("a trip", 1870), ("a used car", 5600), ("a loom", 830))
    )
    price += 10 * rng.randint(0, 60)
    rent = Fraction(income * percent, 100)
    spent = rent + 4 * weekly + other
    saved = income - spent
    require(saved > 60 and price % saved != 0 and price > saved)
    months = int(price / saved) + 1
    return unmarked(
        f"{name} earns {income} euros a month. Of that {percent} % is spent on rent, {weekly} euros a week on food, and "
        f"{other} euros a month on everything else; a month counts as 4 weeks. The rest is saved. After how many whole months "
        f"is there enough for {what} that costs {price} euros?",
        [
            f"The rent is {income}*{percent}/100 = {show(rent)} euros.",
            f"Food for a month costs 4*{weekly} = {4 * weekly} euros.",
            f"The expenses of a month are {show(rent)}+{4 * weekly}+{other} = {show(spent)} euros.",
            f"A month leaves {income}-{show(spent)} = {show(saved)} euros.",
            f"After {months - 1} months there are {months - 1}*{show(saved)} = {show((months - 1) * saved)} euros, too little "
            f"for {price}, and after {months} months {months}*{show(saved)} = {show(months * saved)} euros, so it takes "
            f"{months}.",
        ],
        str(months),
        f"The number of months is {months}.",
    )


def trip(rng: random.Random) -> Problem:
    """Fuel, tolls and parking, shared."""
    friends, way, use = rng.randint(2, 6), 20 * rng.randint(6, 60), tenths(rng, 5, 9)
    price, tolls = hundredths(rng, 1, 2), hundredths(rng, 4, 40)
    days, parking = rng.randint(2, 7), rng.randint(4, 18)
    fuel = way * use / 100
    cost = fuel * price
    total = cost + tolls + days * parking
    each = total / friends
    return unmarked(
        f"{friends} friends drive {way} km in a car that takes {show(use)} L of fuel per 100 km. A litre costs {money(price)} "
        f"euros, the tolls come to {money(tolls)} euros, and parking costs {parking} euros a day for {days} days. They share "
        "everything equally. How many euros does each of them pay, to the cent?",
        [
            f"The car takes {way}*{show(use)}/100 = {show(fuel)} L of fuel.",
            f"The fuel costs {show(fuel)}*{money(price)} = {money(cost)} euros.",
            f"Parking costs {days}*{parking} = {days * parking} euros.",
            f"Everything together is {money(cost)}+{money(tolls)}+{days * parking} = {money(total)} euros.",
            f"Each of them pays {money(total)}/{friends} {near(each, 2)} euros.",
        ],
        fixed(each, 2),
        f"The share of each in euros is {fixed(each, 2)}.",
    )


def benefit(rng: random.Random) -> Problem:
    """An evening's takings less its costs, parted by a ratio."""
    adults, children = rng.randint(60, 240), rng.randint(20, 150)
    full, half = rng.randint(10, 24), rng.randint(4, 9)
    players, fee, hall = rng.randint(3, 12), 10 * rng.randint(5, 12), 10 * rng.randint(15, 60)
    larger, smaller = rng.choice(((2, 1), (3, 2), (3, 1), (5, 3), (4, 1), (5, 2), (7, 3)))
    cause, other = rng.sample(("the library", "the food bank", "the youth club", "the animal shelter", "the fire brigade"), 2)
    takings = adults * full + children * half
    costs = players * fee + hall
    profit = takings - costs
    require(profit > 100)
    share = Fraction(profit * larger, larger + smaller)
    return unmarked(
        f"A benefit concert sells {adults} tickets for adults at {full} euros and {children} for children at {half} euros. "
        f"Each of the {players} musicians gets {fee} euros, and the hall costs {hall} euros. What is left goes to {cause} and "
        f"{other} in the ratio {larger} to {smaller}. How many euros does {cause} get, to the cent?",
        [
            f"The adults pay {adults}*{full} = {adults * full} euros.",
            f"The children pay {children}*{half} = {children * half} euros.",
            f"The takings are {adults * full}+{children * half} = {takings} euros.",
            f"The musicians get {players}*{fee} = {players * fee} euros.",
            f"The costs are {players * fee}+{hall} = {costs} euros.",
            f"What is left is {takings}-{costs} = {profit} euros.",
            f"The part of {cause} is {profit}*{larger}/({larger}+{smaller}) {near(share, 2)} euros.",
        ],
        fixed(share, 2),
        f"The part of {cause} in euros is {fixed(share, 2)}.",
    )


def deposit(rng: random.Random) -> Problem:
    """An account over two or three years."""
    name, start, percent = rng.choice(NAMES), 100 * rng.randint(5, 90), Fraction(rng.randint(2, 10), 2)
    added, years = 50 * rng.randint(1, 20), rng.choice((2, 3))
    balance = Fraction(start)
    steps = []
    for year in range(1, years + 1):
        interest = balance * percent / 100
        after = balance + interest + added
        steps.append(f"The interest of year {year} is {money(balance)}*{show(percent)}/100 = {money(interest)} euros.")
        end = f"= {money(after)}" if year < years else near(after, 2)
        steps.append(f"After the payment the balance is {money(balance)}+{money(interest)}+{added} {end} euros.")
        balance = after
    return unmarked(
        f"{name} opens an account with {start} euros. At the end of each year {show(percent)} % interest on the balance is "
        f"added, and {name} pays in {added} euros more. Nothing is rounded on the way. What is the balance after {years} "
        "years, in euros to the cent?",
        steps,
        fixed(balance, 2),
        f"The balance in euros is {fixed(balance, 2)}.",
    )


def shift(rng: random.Random) -> Problem:
    """Clock times into wages."""
    place, people = rng.choice((("bakery", "bakers"), ("hotel", "cooks"), ("harbour", "pilots"), ("nursery", "gardeners")))
    count, wage, days = rng.randint(2, 9), rng.randint(14, 29), rng.randint(3, 6)
    begin, pause, worked = 5 * rng.randint(48, 120), 15 * rng.randint(1, 4), 15 * rng.randint(18, 34)
    end = begin + worked + pause
    hours = Fraction(worked, 60)
    daily = hours * wage
    return unmarked(
        f"The {count} {people} of a {place} work from {begin // 60:02d}:{begin % 60:02d} to {end // 60:02d}:{end % 60:02d} "
        f"with an unpaid break of {pause} minutes, {days} days a week, for {wage} euros an hour each. How many euros do all of "
        "them earn in a week?",
        [
            f"Work begins {begin // 60}*60+{begin % 60} = {begin} minutes after midnight.",
            f"It ends {end // 60}*60+{end % 60} = {end} minutes after midnight.",
            f"Less the break that is {end}-{begin}-{pause} = {worked} minutes.",
            f"In hours it is {worked}/60 = {show(hours)}.",
            f"One day earns each of them {show(hours)}*{wage} = {money(daily)} euros.",
            f"A week earns each of them {money(daily)}*{days} = {money(daily * days)} euros.",
            f"All of them earn {money(daily * days)}*{count} = {money(daily * days * count)} euros.",
        ],
        money(daily * days * count),
        f"The wages of a week in euros are {money(daily * days * count)}.",
    )


TEMPLATES: tuple[Template, ...] = (budget, trip, benefit, deposit, shift)
