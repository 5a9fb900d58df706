"""What the list of runs says of the machine, and the run that `d` starts: all that needs more than the list itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from engine.config import RunConfig
    from engine.hardware import Hardware
    from engine.selftest_checks import Outcome


def demo_config() -> RunConfig:
    """The packaged demo. Raises InputError."""
    from engine import config, share

    return config.load(share.share_root("configs") / "demo.yaml", {}).config


def look(home: Path) -> tuple[str, tuple[Outcome, str]]:
    """The machine in a few words, and the last self-test with how serious it is."""
    from engine import hardware, selftest

    facts = hardware.facts()
    return machine(facts), selftest.last_line(home, facts)


def machine(facts: Hardware) -> str:
    """The chip and the memory that is free."""
    free = facts.memory_available_bytes
    return f"{facts.chip}   {free / 1e9:.0f} GB free" if free is not None else facts.chip
