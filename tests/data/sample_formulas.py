"""What the sample problems come to, worked out from their questions by other formulas than the templates have. Dates are counted
in days from 2000-01-01 with leap years worked out here, not by `datetime`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction

NUMBER, DATE = r"(\d+(?:\.\d+)?)", r"(\d{4}-\d\d-\d\d)"
DAYS = ("Saturday", "Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday")  # day 0 + 1 January 2000, a Saturday
LONG = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
Ymd = tuple[int, int, int]


def is_leap(year: int) -> bool:
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


def length(year: int, month: int) -> int:
    return LONG[month - 1] + (month == 2 and is_leap(year))


def day_number(day: str) -> int:
    """Days since 2000-01-01."""
    year, month, date = map(int, day.split("-"))
    years = sum(366 if is_leap(y) else 365 for y in range(min(year, 2000), max(year, 2000)))
    return (years if year >= 2000 else -years) + sum(length(year, m) for m in range(1, month)) + date - 1


def from_number(number: int) -> str:
    year, month = 2000, 1
    while number >= (366 if is_leap(year) else 365):
        number -= 366 if is_leap(year) else 365
        year += 1
    while number >= length(year, month):
        number -= length(year, month)
        month += 1
    return f"{year}-{month:02d}-{number + 1:02d}"


def weekday(day: str) -> str:
    return DAYS[day_number(day) % 7]


def to_monday(day: str) -> str:
    number = day_number(day)
    return from_number(number + (2, 1, 0, 0, 0, 0, 0)[number % 7])


def later(day: str, days: Fraction | int) -> str:
    return from_number(day_number(day) + int(days))


def rounded(value: Fraction | float, places: int, unit: str = "") -> str:
    exact = Decimal(value.numerator) / Decimal(value.denominator) if isinstance(value, Fraction) else Decimal(value)
    return f"{exact.quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP)}{f' {unit}' if unit else ''}"


def whole(value: Fraction, unit: str = "") -> str:
    assert value.denominator == 1
    return f"{value}{f' {unit}' if unit else ''}"


def steps_up(value: Fraction, size: Fraction) -> Fraction:
    """How many of that size hold the value."""
    return Fraction(math.ceil(value / size))


# --- chains and money: those that grow with their draw read the question themselves


def mixture(text: str) -> str:
    parts = [(Fraction(a), Fraction(b)) for a, b in re.findall(rf"{NUMBER} L of \w+ with {NUMBER} %", text)]
    water = sum(Fraction(a) for a in re.findall(rf"adds {NUMBER} L", text))
    return rounded(sum(a * b for a, b in parts) / (sum(a for a, _ in parts) + water), 1)


def timetable(text: str) -> str:
    driven = sum(Fraction(a) / Fraction(b) for a, b in re.findall(rf"{NUMBER} km at {NUMBER} km/h", text))
    return whole(driven * 60 + sum(Fraction(a) for a in re.findall(rf"for {NUMBER} minutes", text)))


def shift(
    people: Fraction, h: Fraction, m: Fraction, hh: Fraction, mm: Fraction, off: Fraction, days: Fraction, pay: Fraction
) -> str:
    wages = people * days * pay * (hh - h + (mm - m - off) / 60)
    return str(wages) if wages.denominator == 1 else rounded(wages, 2)


def deposit(start: Fraction, percent: Fraction, added: Fraction, years: Fraction) -> str:
    growth = 1 + percent / 100
    return rounded(start * growth ** int(years) + added * sum(growth**year for year in range(int(years))), 2)


# --- decisive


def order(
    n: Fraction, x: Fraction, m: Fraction, y: Fraction, above: Fraction, off: Fraction, fee: Fraction, free: Fraction
) -> str:
    goods = (n * x + m * y) * (1 - off / 100 * (n * x + m * y > above))
    return rounded(goods + fee * (goods < free), 2)


def tariff(limit: Fraction, first: Fraction, second: Fraction, fee: Fraction, before: Fraction, after: Fraction) -> str:
    used = after - before
    return rounded((min(used, limit) * first + max(used - limit, Fraction(0)) * second) / 100 + fee, 2)


def excursion(
    a: Fraction, b: Fraction, size: Fraction, hire: Fraction, single: Fraction, group: Fraction, enough: Fraction
) -> str:
    return whole(steps_up(a + b, size) * hire + (a + b) * (group if a + b >= enough else single))


# --- medicine and science


def clearance(who: str, age: Fraction, weight: Fraction, serum: Fraction, unit: str) -> str:
    milligrams = serum if unit == "mg/dL" else serum / Fraction("88.4")
    return rounded((140 - age) * weight / 72 / milligrams * (Fraction(17, 20) if who == "woman" else 1), 1, "mL/min")


def reaction(text: str, grams: Fraction, reactant: str, molar: Fraction, product: str, other: Fraction) -> str:
    left, right = text.split(" -> ")
    used, made = (
        next(int(n or 1) for n, name in re.findall(r"(\d+ )?([A-Z]\w*)", side) if name == wanted)
        for side, wanted in ((left, reactant), (right, product))
    )
    return rounded(grams / molar / used * made * other, 1, "g")


# --- law


def months(length_in_months: Fraction, start: str) -> str:
    year, month, day = map(int, start.split("-"))
    for _ in range(int(length_in_months)):
        year, month = (year, month + 1) if month < 12 else (year + 1, 1)
    return to_monday(f"{year}-{month:02d}-{min(day, length(year, month)):02d}")


def limitation(arose: str, learned: str, years: Fraction, pause: Fraction | None) -> str:
    return later(f"{max(int(arose[:4]), int(learned[:4])) + int(years)}-12-31", pause or 0)


def notice(hired: str, given: str, few: Fraction, two: Fraction, four: Fraction, many: Fraction) -> str:
    assert (two, four) == (2, 4)
    served = sum(f"{year}{hired[4:]}" <= given for year in range(int(hired[:4]) + 1, int(given[:4]) + 1))
    year, month = int(given[:4]), int(given[5:7]) + (1 if served < few else 2 if served < many else 4)
    year, month = (year, month) if month <= 12 else (year + 1, month - 12)
    return f"{year}-{month:02d}-{length(year, month)}"


def penalty(due: str, price: Fraction, rate: Fraction, cap: Fraction, day: str) -> str:
    return rounded(price / 100 * min(rate * (day_number(day) - day_number(due)), cap), 2, "EUR")


FORMULAS: dict[str, dict[str, Callable[..., str]]] = {
    "arithmetic": {
        r"What is (\d+(?:[+-]\d+)+)\?":
            lambda text: whole(sum((Fraction(t) for t in re.findall(r"[+-]?\d+", text)), Fraction(0))),
    },
    "words": {
        r"has # boxes with # .+ in each and gives away #\.": lambda a, b, c: whole(a * b - c),
        r"buys # .+ at \$# each and pays with \$#\.": lambda a, b, c: whole(c - a * b),
        r"drives # hours at # km per hour, then # km more": lambda a, b, c: whole(a * b + c),
        r"finds # .+ in the morning and # in the afternoon .+ among # friends": lambda a, b, c: whole((a + b) / c),
        r"has \$#, saves \$# a week for # weeks and spends \$#\.": lambda a, b, c, d: whole(a + b * c - d),
        r"reads # pages a day .+ and # pages a day .+ in # weeks": lambda a, b, c: whole((5 * a + 2 * b) * c),
        r"# m long and # m wide\. A fence .+ gap of # m .+ costs \$#\.": lambda a, b, c, d: whole((2 * a + 2 * b - c) * d),
        r"for # people takes # g .+ for # people and has # g": lambda a, b, c, d: whole(b * c / a - d),
        r"has # rows of # seats\. .+, # adults and # children": lambda a, b, c, d: whole(a * b - (c + d)),
    },
    "chains": {
        r"(.* mixes .*)": mixture,
        r"(.* covers .*)": timetable,
        r"earns # euros a month\. Of that # % .+, # euros a week on food, and # euros .+ as # weeks.+ costs # euros":
            lambda a, p, w, o, n, c: whole(steps_up(c, a * (100 - p) / 100 - w * n - o)),
        r"of # L is .+ with # L per minute; # minutes later .+ with # L per minute\.(?: All the time # L)?":
            lambda v, a, t, b, leak: rounded((v + b * t) / (a + b - (leak or 0)), 1),
        r"# machines that each make # \w+ an hour and run # hours a day\. # % .+ in boxes of #\. .+ do # days":
            lambda n, r, h, p, s, d: whole(Fraction(n * r * h * d * (100 - p) / 100 // s)),
        r"# friends drive # km .+ takes # L .+ costs # euros, .+ to # euros, .+ # euros a day for # days":
            lambda n, km, use, price, tolls, park, days: rounded((km / 100 * use * price + tolls + park * days) / n, 2),
        r"# m long and # m wide; # square .+ with # g .+ bags of # kg at # euros":
            lambda a, b, pond, g, size, price: whole(steps_up((a * b - pond) * g, 1000 * size) * price),
        r"sells # tickets for adults at # euros and # .+ at # euros\. Each of the # \w+ gets # .+ costs # euros.+ratio # to #\.":
            lambda a, x, b, y, n, fee, hall, r, s: rounded((a * x + b * y - n * fee - hall) / (1 + s / r), 2),
        r"with # euros\. At the end of each year # % .+ pays in # euros more.+after # years": deposit,
        r"The # \w+ of a .+ from (\d\d):(\d\d) to (\d\d):(\d\d) .+ break of # minutes, # days a week, for # euros": shift,
    },
    "decisive": {
        r"# parcels, each with # .+ of # g and # g .+ up to # kg costs # euros, a heavier one # euros":
            lambda n, k, g, p, limit, low, high: rounded(n * (low if k * g + p <= 1000 * limit else high), 2),
        r"orders # \w+ at # euros each and # \w+ at # euros .+ than # euros .+ at # % .+ costs # euros, .+ cost # euros": order,
        r"works # days of # hours and # days of # hours .+, for # euros .+ beyond # in a week are paid # %":
            lambda a, h, b, k, wage, limit, p: rounded(wage * (a * h + b * k + (a * h + b * k - limit) * p / 100), 2),
        r"goes # km .+ at # km/h .+ at # km/h": lambda way, a, b: rounded(2 / (1 / a + 1 / b), 1),
        r"first # kWh .+ cost # cents each, .+ # cents, .+ fee of # euros.+ shows # kWh, at its end # kWh": tariff,
        r", # euros, is raised by # %\. .+ at # % off, .+ voucher for # euros":
            lambda price, up, down, voucher: rounded(price * (100 + up) * (100 - down) / 10_000 - voucher, 2),
        r"scale of 1:# .+ measures # cm by # cm\. Every # square metres yield # ":
            lambda s, a, b, unit, n: whole((a * s / 100) * (b * s / 100) / unit * n),
        r"# pupils and # teachers .+ of # seats that cost # euros .+ takes # euros .+ or # euros .+ of # or more": excursion,
        r"is # m long, # m wide and # cm deep\. A hose brings # L": lambda a, b, c, r: rounded(a * 10 * b * 10 * c / 10 / r, 1),
    },
    "medicine": {
        r"weight of # kg is .+: # mg per kg .+ more than # mg\. .+ holds # mg in # mL":
            lambda w, d, cap, m, v: rounded(min(w * d, cap) / (m / v), 1, "mL"),
        r"given at # mg per kg .+, at most # mg a day, in # equal .+ weight of # kg":
            lambda d, cap, n, w: rounded(min(d * w, cap) / n, 1, "mg"),
        r"# mL of .+ over # hours\. .+ gives # drops": lambda v, h, f: rounded(v / h * f / 60, 0, "drops/min"),
        r"at # micrograms .+ is # kg\. .+ holds # mg in # mL": lambda r, w, m, v: rounded(r * w * v / m * 3 / 50, 1, "mL/h"),
        r"Estimate .+ A (woman|man) of # years weighs # kg .+ creatinine of # (mg/dL|micromol/L)": clearance,
        r"infusion of # mL .+ of # mL/h\. After # mL .+ to # mL/h":
            lambda v, a, x, b: rounded((x / a + (v - x) / b) * 60, 0, "min"),
        r"with # mg/mL, # mL of a solution with # mg/mL": lambda stock, v, goal: rounded(v * (1 - goal / stock), 1, "mL"),
        r"patient of # kg is to get # mg .+ solution of # %": lambda w, d, p: rounded(w * d / (p / 100 * 1000), 1, "mL"),
        r"with # tablets # times a day for # days .+ with # tablet .+ for # days\. A pack holds #":
            lambda a, b, days, one, rest, size: whole(steps_up(a * b * days + one * rest, size), "packs"),
    },
    "science": {
        r"reaction (.+?), # g of (\w+) .+ of \w+ is # g/mol, that of (\w+) # g/mol": reaction,
        r"(?:activity|mass) of # (\w+)\. The half-life is # minutes\. .+ after # hours":
            lambda a, unit, life, h: rounded(a * Fraction(1, 2) ** int(h * 60 / life), 1, unit),
        r"travels at # km/h\. .+ after # s, .+ of # m/s²":
            lambda v, t, a: rounded(v * t * 5 / 18 + (v * 5 / 18) ** 2 / 2 / a, 1, "m"),
        r"velocity of # m/s and .+ constant # m/s² for # s": lambda v, a, t: rounded(t * (v + (v + a * t)) / 2, 1, "m"),
        r"holds # L of \w+ at # °C and # kPa\. .+ at # °C and # kPa":
            lambda v, a, p, b, q: rounded(v * (p / q) * ((b + 273) / (a + 273)), 2, "L"),
        r"# mL of .+ of # mol/L .+ to # mL": lambda v, c, end: f"pH {rounded(-math.log(v * c / end, 10), 2)}",
        r"heats # kg of water from # °C to # °C .+ of # W, of which # % .+ is # J":
            lambda m, a, b, w, p, c: rounded(m * c * (b - a) / (w * p / 100), 0, "s"),
        r"load of # kg by # m, # times .+ as # m/s²": lambda m, h, n, g: rounded(m * h * n * g / 1000, 1, "kJ"),
    },
    "law": {
        r"On @, a \w+, .+ receives .+ period of # days": lambda day, n: to_monday(later(day, n)),
        r"within # months? of @,": months,
        r"posted to .+ on @, .+ received # days after .+ is # weeks? from":
            lambda day, n, weeks: later(to_monday(later(day, n)), weeks * 7),
        r"arose on @; .+ on @\. .+ is # years\. (?:.+ suspended it for # days)?": limitation,
        r"since @ and receives .+ on @\. .+ less than # full .+, # calendar months from # years and # from # years":
            lambda hired, given, few, two, again, four, many: notice(hired, given, few, two, four, many),
        r"owes .+? # EUR, due on @, and pays on @\. .+ of # % .+ as # days":
            lambda s, due, paid, p, basis: rounded(s * p / 100 * (day_number(paid) - day_number(due)) / basis, 2, "EUR"),
        r"for # EUR and is awarded # EUR\. .+ fee of # EUR and # EUR .+ defendant # EUR":
            lambda claimed, won, fee, a, b: rounded((fee + a + b) * won / claimed - b, 2, "EUR"),
        r"by @ for # EUR\. .+ of # % .+ but # % .+ on @\.":
            penalty,
    },
}  # fmt: skip
# of the same problems, in the same order: by the place of a step, the answer of a reader who passes it over
PASSED_OVER: tuple[Callable[..., dict[int, Fraction]], ...] = (
    lambda n, k, g, p, limit, low, high: {2: n * high, 3: n * low},
    lambda n, x, m, y, above, off, fee, free: {
        3: _delivered(n * x + m * y, fee, free),
        -2: (n * x + m * y) * (1 - off / 100 * (n * x + m * y > above)) + fee,
    },
    lambda a, h, b, k, wage, limit, p: {3: wage * (a * h + b * k)},
    lambda way, a, b: {3: (a + b) / 2},
    lambda limit, first, second, fee, before, after: {
        1: (after - before) * first / 100 + fee,
        -2: min(after - before, limit) * first + max(after - before - limit, Fraction(0)) * second + fee,
    },
    lambda price, up, down, voucher: {
        2: price * (100 + up - down) / 100 - voucher,
        4: price * (100 + up) * (100 - down) / 10_000,
    },
    lambda s, a, b, unit, n: {1: a * b * s / 10_000 / unit * n, 3: a * b * s * s / 100 / unit * n},
    lambda a, b, size, hire, single, group, enough: {
        1: (a + b) // size * hire + (a + b) * (group if a + b >= enough else single),
        3: steps_up(a + b, size) * hire + (a + b) * single,
    },
    lambda a, b, c, r: {0: a * b * c * 1000 / r, 2: a * b * c / 100 / r},
)


def _delivered(goods: Fraction, fee: Fraction, free: Fraction) -> Fraction:
    return goods + fee * (goods < free)


_COMPILED = {
    topic: {re.compile(pattern.replace("#", NUMBER).replace("@", DATE)): formula for pattern, formula in formulas.items()}
    for topic, formulas in FORMULAS.items()
}


def answer(topic: str, question: str) -> tuple[str, str]:
    """What the question comes to, and the pattern of the one formula that reads it."""
    found = [(pattern, match) for pattern in _COMPILED[topic] if (match := pattern.search(question))]
    assert len(found) == 1, (question, [pattern.pattern for pattern, _ in found])
    pattern, match = found[0]
    groups = [Fraction(g) if g and re.fullmatch(NUMBER, g) else g for g in match.groups()]
    return _COMPILED[topic][pattern](*groups), pattern.pattern


def marks(question: str, right: Fraction, steps: int) -> tuple[list[float], set[tuple[str, int]]]:
    """What the steps of a problem of the topic `decisive` are to be marked with, 0 where passing over changes nothing; and which
    of the kinds of steps in PASSED_OVER decided."""
    found, decided = [0.0] * steps, set()
    for pattern, others in zip(_COMPILED["decisive"], PASSED_OVER, strict=True):
        if match := pattern.search(question):
            for place, other in others(*map(Fraction, match.groups())).items():
                off = abs(Fraction(other) - right) / right
                found[place] = 0.0 if off < Fraction(1, 10_000) else 0.5 if off < Fraction(1, 10) else 1.0
                decided |= {(pattern.pattern, place)} if found[place] else set()
    return found, decided
