"""The screens in README, captured from the real app on a real run of the demo (about a minute).

    python -m tests.bench.captures [--out tests/captures]

Writes method.svg, data.svg, estimate.svg and live.svg.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path
from typing import Any

from textual.pilot import Pilot

from engine import config as configs
from engine.api import Engine
from engine.share import share_root
from tests.tui.support import settle, wait_for_text
from tui.app import DroidTuneApp

ROOT = Path(__file__).resolve().parents[2]
SIZE = (96, 28)
LIVE_AT_STEP = 36


async def capture(pilot: Pilot[Any], out: Path, name: str) -> None:
    """Write the screen as it stands."""
    await settle(pilot)
    path = out / f"{name}.svg"
    path.write_text(pilot.app.export_screenshot(title=f"droid-tune: {name}"), encoding="utf-8")
    print(path)


async def wizard(home: Path, out: Path) -> None:
    """The method picker, the data check and the estimate of a new run."""
    async with DroidTuneApp(Engine(home)).run_test(size=SIZE) as pilot:
        await wait_for_text(pilot, "n new run")
        await pilot.press("n")
        await wait_for_text(pilot, "1 of 5")
        await capture(pilot, out, "method")
        await pilot.press("enter")
        await wait_for_text(pilot, "held-out  ✓ ready")
        await capture(pilot, out, "data")
        await pilot.press("enter")
        await wait_for_text(pilot, "3 of 5")
        await pilot.press("right_square_bracket")
        await wait_for_text(pilot, "✓ fits")
        await capture(pilot, out, "estimate")


async def live(home: Path, out: Path) -> None:
    """The live view of the demo, most of the way through."""
    engine = Engine(home)
    run = await engine.start(configs.load(share_root("configs") / "demo.yaml", {"run.name": "think-demo"}).config)
    async for event in run.events():
        if event.type == "step" and event.fields["step"] >= LIVE_AT_STEP:
            break
    async with DroidTuneApp(engine, run.id).run_test(size=SIZE) as pilot:
        await wait_for_text(pilot, "where a step goes")
        await capture(pilot, out, "live")
    await run.wait()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "tests" / "captures")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as home:
        await wizard(Path(home), out)
        await live(Path(home), out)


if __name__ == "__main__":
    asyncio.run(main())
