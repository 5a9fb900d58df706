"""The self-test on this machine's device: the model is loaded once, each check is timed, and a check that raises has failed."""

from __future__ import annotations

import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import mlx.core as mx
from jinja2 import TemplateError

from engine import config as configs
from engine import share
from engine.errors import InputError
from engine.models.sources import with_weights
from engine.sections import AdapterConfig
from engine.selftest_checks import CHECKS, Check, CheckResult, Figure, Subject, result
from engine.worker import facts
from engine.worker import selftest_checks as checks
from engine.worker.model import load_policy

Found = tuple[Figure, ...] | str  # figures, or why the check is skipped


def selftest(model: str) -> Iterator[Subject | CheckResult]:
    """What is tested, then the result of each of CHECKS as it completes; a failed one's traceback goes to stderr.

    `model` is a folder, an HF id on this machine or `demo`. Raises InputError where it cannot be loaded.
    """
    bench = _Bench(with_weights(configs.model_folder(configs.model_path(model, Path.cwd()))))
    kind, name = facts.device()
    yield Subject(device=kind, device_name=name, dtype=bench.dtype)
    for check, compute in zip(CHECKS, bench.computed(), strict=True):
        yield _timed(check, compute)


class _Bench:
    """The model under test, with its trained weights moved a little."""

    def __init__(self, folder: Path) -> None:
        self.policy = load_policy(folder, AdapterConfig(), checks.SEED)
        try:
            checks.texts(self.policy)
        except TemplateError as error:
            remedy = "give a model that takes a question without a system message, or `demo`"
            raise InputError(f"its chat template refuses a plain question: {error}", where=str(folder), remedy=remedy) from error
        checks.move(self.policy)
        self.dtype = checks.dtype_of(self.policy)

    def computed(self) -> tuple[Callable[[], Found], ...]:
        """What computes each of CHECKS, in their order."""
        return (
            checks.golden_values,
            lambda: checks.batch_or_alone(self.policy),
            lambda: checks.sampler_and_trainer(self.policy),
            self._same_bits_twice,
            self._gradient,
            self._round_trip,
        )

    def _same_bits_twice(self) -> Found:
        """Full training too: it has sums that a low-rank adapter has not (of the embedding's gradient)."""
        demo = load_policy(share.demo_model(), AdapterConfig(type="full"), checks.SEED)
        return checks.same_bits_twice({"adapter": self.policy, "full (demo)": demo})

    def _gradient(self) -> Found:
        if self.dtype != "float32":
            return f"{self.dtype} is too coarse for finite differences"
        return checks.gradient(self.policy)

    def _round_trip(self) -> Found:
        """The last check: the policy is let go, so that there is room for the model that mlx_lm loads."""
        with tempfile.TemporaryDirectory(prefix="droid-tune-selftest-") as folder:
            written = checks.write_adapter(self.policy, Path(folder))
            del self.policy
            mx.clear_cache()
            return checks.read_back(written)


def _timed(check: Check, compute: Callable[[], Found]) -> CheckResult:
    start = time.perf_counter()
    try:
        found = compute()
    except Exception as error:  # noqa: BLE001 - whatever breaks on this device is what the check has found
        traceback.print_exc(file=sys.stderr)
        return result(check, broke=f"{type(error).__name__}: {error}", seconds=time.perf_counter() - start)
    seconds = time.perf_counter() - start
    return result(check, skipped=found, seconds=seconds) if isinstance(found, str) else result(check, found, seconds=seconds)
