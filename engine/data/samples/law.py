"""Interest, costs and penalties. No law of any country is claimed: every rule that is applied stands in the question."""

from __future__ import annotations

import random
from datetime import date, timedelta
from fractions import Fraction

from engine.data.samples.problem import Field, Problem, Step, Template, fixed, hinges, money, near, require, show

PARTIES = (
    *("the tenant", "the landlord", "the buyer", "the seller", "the insurer", "the contractor", "the borrower", "the publisher"),
    *("the carrier", "the employer", "the client", "the heir", "the licensee", "the neighbour", "the association", "the builder"),
)
WRITTEN = "dates are written YYYY-MM-DD"
_EUR = ("EUR", "€", "euros")
ruled = Field(
    "law", ("law student", "trainee paralegal", "court clerk", "legal assistant", "apprentice in a notary's office")
).problem


def any_day(rng: random.Random, first: int = 2015, last: int = 2032) -> date:
    """A day from the first of these years to the last."""
    return date(first, 1, 1) + timedelta(rng.randrange((date(last, 12, 31) - date(first, 1, 1)).days))


def interest(rng: random.Random) -> Problem:
    """Simple interest by days. Passed over: that the due date is not counted; the year of 360 days."""
    due, count, basis = any_day(rng), rng.randint(15, 900), rng.choice((360, 365))
    paid = due + timedelta(count)
    sum_due, percent = 50 * rng.randint(4, 400), Fraction(rng.randint(6, 40), 4)
    debtor, creditor = rng.sample(PARTIES, 2)
    yearly = sum_due * percent / 100
    owed = yearly * count / basis
    return ruled(
        rng,
        f"{debtor[0].upper()}{debtor[1:]} owes {creditor} {sum_due} EUR, due on {due}, and pays on {paid}. Simple interest of "
        f"{show(percent)} % a year is owed for each day after the due date up to and including the day of payment; every year "
        f"counts as {basis} days. What interest is owed, in EUR to the cent (as in 12.34 EUR)?",
        [
            Step(
                f"The due date is not counted: {due} + {count} days = {paid}, so the interest runs for {count} days.",
                hinges(owed, yearly * (count + 1) / basis),
            ),
            Step(f"The interest of a year is {sum_due}*{show(percent)}/100 = {money(yearly)} EUR."),
            Step(
                f"For these days the interest is {money(yearly)}*{count}/{basis} {near(owed, 2)} EUR.",
                hinges(owed, yearly * count / 365),
            ),
        ],
        f"{fixed(owed, 2)} EUR",
        "The interest owed is",
        ("due date", "interest"),
        _EUR,
        "interest bears no interest",
        WRITTEN,
    )


def costs(rng: random.Random) -> Problem:
    """Costs by the share that was lost. Passed over: what the defendant has paid already."""
    claimed, percent = 100 * rng.randint(10, 400), rng.choice((20, 25, 30, 40, 60, 65, 70, 75, 80, 85, 90))
    awarded = claimed * percent // 100
    fee, first, second = 10 * rng.randint(15, 120), 10 * rng.randint(30, 250), 10 * rng.randint(30, 250)
    total = fee + first + second
    borne = Fraction(total * percent, 100)
    owed = borne - second
    require(owed > 50)
    plaintiff, defendant = rng.sample(PARTIES, 2)
    return ruled(
        rng,
        f"{plaintiff[0].upper()}{plaintiff[1:]} sues {defendant} for {claimed} EUR and is awarded {awarded} EUR. The costs are "
        f"shared by the parties in the proportion in which each has lost. The plaintiff has paid the court fee of {fee} EUR "
        f"and {first} EUR for a lawyer, the defendant {second} EUR for a lawyer. How much of the costs does the defendant have "
        "to pay the plaintiff back, in EUR to the cent (as in 12.34 EUR)?",
        [
            Step(f"The defendant has lost the share 100*{awarded}/{claimed} = {percent} percent."),
            Step(f"The costs of both sides are {fee}+{first}+{second} = {total} EUR."),
            Step(f"The defendant bears the share {total}*{percent}/100 = {money(borne)} EUR.", hinges(owed, total - second)),
            Step(
                f"Less what the defendant has paid that is {money(borne)}-{second} = {fixed(owed, 2)} EUR.", hinges(owed, borne)
            ),
        ],
        f"{fixed(owed, 2)} EUR",
        "The amount to pay back is",
        ("defendant", "costs", "share"),
        _EUR,
        "the court fee and both lawyers are part of the costs",
    )


def penalty(rng: random.Random) -> Problem:
    """A contractual penalty by days, with a cap. Passed over: the cap."""
    agreed, late = any_day(rng), rng.randint(5, 60)
    price, rate, cap = 100 * rng.randint(20, 900), Fraction(rng.randint(1, 10), 20), rng.choice((4, 5, 6, 8, 10))
    handed = agreed + timedelta(late)
    daily = price * rate / 100
    accrued, most = daily * late, Fraction(price * cap, 100)
    require(accrued != most)
    owed = min(accrued, most)
    what = rng.choice(("a roof", "a software module", "a machine", "a bridge repair", "a heating system", "a catalogue"))
    return ruled(
        rng,
        f"Under a contract {what} is to be completed by {agreed} for {price} EUR. For each day of delay a contractual penalty "
        f"of {show(rate)} % of the price is owed, but {cap} % of the price at most. It is completed on {handed}. What penalty "
        "is owed, in EUR to the cent (as in 12.34 EUR)?",
        [
            Step(f"As {agreed} + {late} days = {handed}, the delay in days is {late}."),
            Step(f"A day of delay costs {price}*{show(rate)}/100 = {money(daily)} EUR."),
            Step(f"The whole delay would cost {money(daily)}*{late} = {money(accrued)} EUR."),
            Step(f"The contractual penalty is capped at {price}*{cap}/100 = {money(most)} EUR."),
            Step(
                f"As {money(accrued)} {'>' if accrued > most else '<'} {money(most)}, the penalty owed is {fixed(owed, 2)} EUR.",
                hinges(owed, accrued),
            ),
        ],
        f"{fixed(owed, 2)} EUR",
        "The penalty owed is",
        ("delay", "contractual penalty"),
        _EUR,
        WRITTEN,
    )


TEMPLATES: tuple[Template, ...] = (interest, costs, penalty)
