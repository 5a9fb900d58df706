"""Periods that end on a date. No law of any country is claimed: every rule that is applied stands in the question."""

from __future__ import annotations

import random
from datetime import date, timedelta

from engine.data.samples.law import PARTIES, WRITTEN, any_day, ruled
from engine.data.samples.problem import Problem, Step, Template, require

_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_WRITINGS = (
    "a decision",
    "a notice of assessment",
    "a judgment",
    "a penalty notice",
    "a building permit",
    "a refusal",
    "an order",
)
_EMPLOYERS = ("a bakery", "a publishing house", "a city council", "a shipyard", "a hospital", "a law firm", "a theatre", "a bank")
_REMEDIES = ("an objection", "an appeal", "a complaint", "a request for review")
_NO_HOLIDAYS = "public holidays are left out of account"


def _month_end(year: int, month: int) -> date:
    """The last day of the month; months beyond 12 are of later years."""
    return date(year + month // 12, month % 12 + 1, 1) - timedelta(1)


def _roll(day: date) -> date:
    """The day, or the Monday after a weekend."""
    return day + timedelta({5: 2, 6: 1}.get(day.weekday(), 0))


def _plus(day: date, days: int) -> str:
    """The sum as a step writes it."""
    return f"{day} + {days} {'day' if days == 1 else 'days'} = {day + timedelta(days)}"


def _decides(right: date, without: date) -> float:
    """As hinges: a date is right or wrong."""
    return float(right != without)


def _weekday(start: date, days: int) -> Step:
    """Which day of the week comes that many days after `start`."""
    end = start + timedelta(days)
    return Step(
        f"As {days // 7}*7+{days % 7} = {days}, that is {days % 7} days on from a {_DAYS[start.weekday()]} in the week, a "
        f"{_DAYS[end.weekday()]}, {end}."
    )


def _rolled(day: date) -> Step:
    """What the weekend makes of the last day. Passed over: the period ends on it."""
    end = _roll(day)
    if end == day:
        return Step(f"This last day is no Saturday or Sunday, so the period ends on {end}.")
    return Step(f"The period runs on to the Monday, and {_plus(day, (end - day).days)}.", _decides(end, day))


def days_of_grace(rng: random.Random) -> Problem:
    """A period in days from an event. Passed over: the weekend."""
    start, length = any_day(rng), rng.randint(5, 75)
    last = start + timedelta(length)
    who, writing, remedy = rng.choice(PARTIES), rng.choice(_WRITINGS), rng.choice(_REMEDIES)
    return ruled(
        rng,
        f"On {start}, a {_DAYS[start.weekday()]}, {who} receives {writing}. By the rules that apply, {remedy} may be lodged "
        f"within a period of {length} days. The day of receipt is not counted. A period whose last day is a Saturday or a "
        "Sunday ends on the next Monday; public holidays are left out of account. On which date does the period end "
        "(YYYY-MM-DD)?",
        [
            Step(f"As the day of receipt is not counted, the last day is {_plus(start, length)}."),
            _weekday(start, length),
            _rolled(last),
        ],
        f"{_roll(last)}",
        "The period ends on",
        ("day of receipt", "period"),
        (),
        WRITTEN,
        _NO_HOLIDAYS,
    )


def months(rng: random.Random) -> Problem:
    """A period in calendar months. Passed over: that the month has no such day; the weekend."""
    start, length = any_day(rng), rng.randint(1, 9)
    if rng.random() < 0.4:  # ends of months are rare among days, and they are what is to be learned
        start = _month_end(start.year, start.month)
    place = start.month + length
    longest = _month_end(start.year, place)
    is_short = start.day > longest.day
    last = longest if is_short else longest.replace(day=start.day)
    overflow = longest + timedelta(start.day - longest.day) if is_short else last
    days = (last - start).days
    counted = f"{start.month}+{length} = {place}" + (f" and {place}-12 = {place - 12}" if place > 12 else "")
    has = (
        f"has no day {start.day} as {longest.day} < {start.day}"
        if is_short
        else f"has {longest.day} days and {start.day} <= {longest.day}"
    )
    who, duty = rng.choice(PARTIES), rng.choice(("give notice of defects", "accept the offer", "lodge a claim", "name an expert"))
    return ruled(
        rng,
        f"Under a contract {who} may {duty} within {length} {'month' if length == 1 else 'months'} of {start}, a "
        f"{_DAYS[start.weekday()]}. A period in months ends on that day of the last month which has the same number as the day "
        "it runs from, or on the last day of that month if it has no such day. If this is a Saturday or a Sunday, it ends on "
        "the next Monday; public holidays are left out of account. On which date does the period end (YYYY-MM-DD)?",
        [
            Step(f"Counting calendar months, {counted}, so the period ends in month {last.month} of {last.year}."),
            Step(f"That month {has}, so the last day is {last}.", _decides(_roll(last), _roll(overflow))),
            Step(f"In days that is {_plus(start, days)}."),
            _weekday(start, days),
            _rolled(last),
        ],
        f"{_roll(last)}",
        "The period ends on",
        ("calendar months", "period"),
        (),
        WRITTEN,
        _NO_HOLIDAYS,
    )


def by_post(rng: random.Random) -> Problem:
    """A letter that counts as received days later, and weeks from then. Passed over: the days in the post; the weekend."""
    posted, transit, weeks = any_day(rng), rng.choice((2, 3, 4)), rng.randint(1, 8)
    arrived = posted + timedelta(transit)
    counted = _roll(arrived)
    end = counted + timedelta(7 * weeks)
    writing, remedy = rng.choice(_WRITINGS), rng.choice(_REMEDIES)
    is_moved = counted != arrived
    return ruled(
        rng,
        f"{writing[0].upper()}{writing[1:]} is posted to {rng.choice(PARTIES)} on {posted}, a {_DAYS[posted.weekday()]}. It "
        f"counts as received {transit} days after posting or, if that is a Saturday or a Sunday, on the next Monday. The "
        f"period for {remedy} is {weeks} {'week' if weeks == 1 else 'weeks'} from the day of receipt, which is not counted. On "
        "which date does it end (YYYY-MM-DD)?",
        [
            Step(
                f"The days in the post lead to {_plus(posted, transit)}.",
                _decides(end, posted + timedelta(7 * weeks)),
            ),
            _weekday(posted, transit),
            Step(
                f"Moved to the Monday, the day of receipt is {_plus(arrived, (counted - arrived).days)}.",
                _decides(end, arrived + timedelta(7 * weeks)),
            )
            if is_moved
            else Step(f"No Saturday or Sunday, it is the day of receipt, {counted}."),
            Step(f"The period has {weeks}*7 = {7 * weeks} days."),
            Step(f"It ends on {_plus(counted, 7 * weeks)}."),
        ],
        f"{end}",
        "The period ends on",
        ("day of receipt", "period"),
        (),
        WRITTEN,
    )


def limitation(rng: random.Random) -> Problem:
    """Years from the end of a year. Passed over: when the creditor learned of the claim; the days of negotiation."""
    arose, years, pause = any_day(rng, 2012, 2026), rng.choice((2, 3, 4, 5)), rng.choice((0, rng.randint(10, 200)))
    learned, who = arose + timedelta(rng.randint(1, 900)), rng.choice(PARTIES)
    end = date(learned.year + years, 12, 31)
    final = end + timedelta(pause)
    early = date(arose.year + years, 12, 31)
    compared = (
        f"{arose.year} < {learned.year}, the later" if learned.year > arose.year else f"{arose.year} = {learned.year}, this"
    )
    steps = [
        Step(f"As {compared} year counts for the claim, {learned.year}.", _decides(final, early + timedelta(pause))),
        Step(f"The limitation period begins when that year has ended, and {learned.year}+{years} = {learned.year + years}."),
        Step(f"It would end with the last day of that year, {end}."),
    ]
    if pause:
        steps.append(Step(f"The suspension moves it to {_plus(end, pause)}.", _decides(final, end)))
    return ruled(
        rng,
        f"A claim of {who} arose on {arose}; {who} learned of it on {learned}. The limitation period is {years} years. It "
        "begins at the end of the year in which the claim has arisen and its holder has learned of it, and it ends with the "
        "end of a year."
        + (f" Negotiations suspended it for {pause} days, which are added at its end." if pause else "")
        + " Weekends make no difference. On which date does it end (YYYY-MM-DD)?",
        steps,
        f"{final}",
        "The limitation period ends on",
        ("claim", "limitation period"),
        (),
        WRITTEN,
    )


def notice(rng: random.Random) -> Problem:
    """Notice by length of service, to the end of a month. Passed over: the longer period."""
    given = any_day(rng, 2018, 2032)
    hired = any_day(rng, 2004, given.year - 1)
    few, many = rng.choice(((2, 5), (3, 8), (2, 10), (4, 9)))
    require((hired.month, hired.day) != (2, 29))
    is_full = (given.month, given.day) >= (hired.month, hired.day)
    years = given.year - hired.year - (not is_full)
    length = 1 if years < few else 2 if years < many else 4
    place = given.month + length
    end = _month_end(given.year, place)
    anniversary = hired.replace(year=given.year)
    served = (
        f"{given.year}-{hired.year} = {years} and {anniversary} <= {given}"
        if is_full
        else f"{given.year}-{hired.year}-1 = {years}, because {anniversary} > {given}"
    )
    tier = f"{years} < {few}" if years < few else f"{few} <= {years} < {many}" if years < many else f"{years} >= {many}"
    return ruled(
        rng,
        f"An employee has worked for {rng.choice(_EMPLOYERS)} since {hired} and receives a notice of termination on {given}. The "
        f"notice period is 1 calendar month with less than {few} full years of service, 2 calendar months from {few} years and "
        f"4 from {many} years. It begins with the month after the one in which the notice is received and ends with the last "
        "day of its last month. On which date does the employment end (YYYY-MM-DD)?",
        [
            Step(f"The full years of service: {served}, so they number {years}."),
            Step(
                f"As {tier}, the notice period in calendar months is {length}.",
                _decides(end, _month_end(given.year, given.month + 1)),
            ),
            Step(
                f"Its last month follows from {given.month}+{length} = {place}"
                + (f" and {place}-12 = {end.month}." if place > 12 else ".")
            ),
            Step(f"Month {end.month} of {end.year} ends on {end}."),
        ],
        f"{end}",
        "The employment ends on",
        ("years of service", "notice period"),
        (),
        WRITTEN,
    )


TEMPLATES: tuple[Template, ...] = (days_of_grace, months, by_post, limitation, notice)
