"""Calculations of school chemistry. Molar masses stand in the question, rounded as they are used."""

from __future__ import annotations

import random
from decimal import Decimal
from fractions import Fraction

from engine.data.samples.problem import Field, Problem, Step, Template, fixed, hinges, near, show

# equation; of what is used up and of what is made: coefficient, formula, molar mass in g/mol
_REACTIONS = (
    ("2 Mg + O2 -> 2 MgO", (2, "Mg", "24.3"), (2, "MgO", "40.3")),
    ("2 H2 + O2 -> 2 H2O", (1, "O2", "32"), (2, "H2O", "18")),
    ("N2 + 3 H2 -> 2 NH3", (1, "N2", "28"), (2, "NH3", "17")),
    ("CH4 + 2 O2 -> CO2 + 2 H2O", (1, "CH4", "16"), (2, "H2O", "18")),
    ("C3H8 + 5 O2 -> 3 CO2 + 4 H2O", (1, "C3H8", "44.1"), (3, "CO2", "44")),
    ("4 Fe + 3 O2 -> 2 Fe2O3", (4, "Fe", "55.8"), (2, "Fe2O3", "159.6")),
    ("2 Al + 3 Cl2 -> 2 AlCl3", (3, "Cl2", "70.9"), (2, "AlCl3", "133.3")),
    ("2 KClO3 -> 2 KCl + 3 O2", (2, "KClO3", "122.5"), (3, "O2", "32")),
    ("CaCO3 -> CaO + CO2", (1, "CaCO3", "100.1"), (1, "CaO", "56.1")),
    ("2 NaHCO3 -> Na2CO3 + CO2 + H2O", (2, "NaHCO3", "84"), (1, "Na2CO3", "106")),
)
_made = Field(
    "chemistry", ("secondary school", "first-year chemistry student", "laboratory trainee", "chemistry teacher")
).problem


def stoichiometry(rng: random.Random) -> Problem:
    """Mass to mass by moles. Passed over: the coefficients."""
    equation, (used, reactant, mass_in), (made, product, mass_out) = rng.choice(_REACTIONS)
    moles = Fraction(used * rng.randint(2, 600), 100)
    grams = moles * Fraction(mass_in)
    got = moles * made / used
    mass = got * Fraction(mass_out)
    return _made(
        rng,
        f"In the reaction {equation}, {show(grams)} g of {reactant} react completely. The molar mass of {reactant} is "
        f"{mass_in} g/mol, that of {product} {mass_out} g/mol. What mass of {product} is formed, in g to one decimal place?",
        [
            Step(f"The amount of substance of {reactant} is {show(grams)}/{mass_in} = {show(moles)} mol."),
            Step(
                f"By the mole ratio {made}:{used} that gives {show(moles)}*{made}/{used} = {show(got)} mol of {product}.",
                hinges(mass, moles * Fraction(mass_out)),
            ),
            Step(f"With its molar mass the product weighs {show(got)}*{mass_out} {near(mass, 1)} g."),
        ],
        f"{fixed(mass, 1)} g",
        f"The mass of {product} is",
        ("amount of substance", "mole ratio", "molar mass"),
        ("g", "grams"),
        "the coefficients of the equation count moles",
    )


def acid(rng: random.Random) -> Problem:
    """The pH of a diluted strong acid. Passed over: the dilution."""
    name, taken = rng.choice(("hydrochloric acid", "nitric acid", "perchloric acid")), rng.randint(5, 100)
    start, factor = Fraction(rng.randint(1, 100), 100), rng.choice((2, 4, 5, 8, 10, 20, 25, 50))
    end = taken * factor
    amount, result = start * taken, start / factor
    ph = _ph(result)
    return _made(
        rng,
        f"{taken} mL of {name} with a concentration of {show(start)} mol/L are filled up with water to {end} mL. The acid is "
        "strong: it dissociates completely and gives one proton per molecule. What is the pH of the diluted acid, to two "
        "decimal places, where pH = -log10 of the proton concentration in mol/L?",
        [
            Step(f"The acid holds {show(start)}*{taken} = {show(amount)} mmol of protons."),
            Step(
                f"After the dilution the proton concentration is {show(amount)}/{end} = {show(result)} mol/L.",
                hinges(ph, _ph(start)),
            ),
            Step(f"The pH value is -log10({show(result)}) {near(ph, 2)}."),
        ],
        f"pH {fixed(ph, 2)}",
        "The diluted acid has the value",
        ("dilution", "proton concentration", "pH value"),
        (),
        "a pH has no unit",
    )


def _ph(concentration: Fraction) -> Fraction:
    """-log10 to 20 digits: exact where it is whole, and far beyond what a rounding to two decimals can tell."""
    return Fraction(-(Decimal(concentration.numerator) / Decimal(concentration.denominator)).log10())


TEMPLATES: tuple[Template, ...] = (stoichiometry, acid)
