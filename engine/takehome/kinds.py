"""What can be asked of an export, and what it gave. Values only."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from engine.errors import InputError

Kind = Literal["adapter", "fused", "gguf", "lmstudio"]
KINDS: tuple[Kind, ...] = get_args(Kind)
BITS = (4, 6, 8)
GROUP_SIZES = (32, 64, 128)

# The largest Kullback-Leibler divergence, in nats, that nine of ten tokens may have. One in ten may pass it: in a mixture of
# experts a near-tie in a router falls the other way under rounding alone.
EXACT = 1e-6  # float32 throughout: what differs is the order of sums
HALF = 0.02  # weights rounded to 16 bits
EIGHT_BITS = 0.1  # GGUF's Q8_0


@dataclass(frozen=True, slots=True)
class Job:
    """One export. `bits`: quantise what is not (adapter: not possible; gguf: 8 is Q8_0, None F16). `dequantize`: of a quantised
    base the fused model is not quantised again. `force`: an earlier export in `out` is replaced."""

    kind: Kind
    out: Path
    bits: int | None = None
    group_size: int = 64
    dequantize: bool = False
    force: bool = False

    def check(self) -> None:
        """Raise InputError for settings that do not go together."""
        wrong: tuple[str, str, str] | None = None
        if self.kind not in KINDS:
            wrong = (f"no kind of export {self.kind!r}", "--to", f"one of: {', '.join(KINDS)}")
        elif self.bits is not None and self.bits not in BITS:
            wrong = (f"{self.bits} is no number of bits", "--bits", "4, 6 or 8")
        elif self.group_size not in GROUP_SIZES:
            wrong = (f"{self.group_size} is no group size", "--group-size", "32, 64 or 128")
        elif self.kind == "adapter" and (self.bits is not None or self.dequantize):
            wrong = ("an adapter is not quantised", "--to adapter", "leave --bits and --dequantize out, or use --to fused")
        elif self.kind == "gguf" and self.bits not in (None, 8):
            wrong = (f"GGUF files are written as F16 and Q8_0, not with {self.bits} bits", "--bits", "leave it out, or --bits 8")
        elif self.kind == "gguf" and self.out.suffix.lower() == ".gguf":
            wrong = ("--out is a folder: it gets the file and its model card", str(self.out), "leave .gguf off")
        if wrong is not None:
            what, where, remedy = wrong
            raise InputError(what, where=where, remedy=remedy)


@dataclass(frozen=True, slots=True)
class Difference:
    """How far the export is from the run's own policy, over `tokens` fixed tokens."""

    tokens: int
    largest: float  # of |difference of two logits|
    kl: float  # mean over the tokens, nats: sum of p_policy log(p_policy / p_export)
    kl_90: float  # of nine tokens in ten, at most


@dataclass(frozen=True, slots=True)
class Exported:
    """One export that was made, read back by mlx_lm in a process of its own, and compared."""

    kind: Kind
    out: Path
    checkpoint: str  # best | last | N
    step: int | None
    bytes: int
    files: tuple[str, ...]
    quantization: dict[str, Any] | None  # bits and group_size (GGUF: type) where it is quantised
    difference: Difference
    reload: Difference | None  # of a quantised model: to what was to be written, before it was
    command: str  # that uses it
    notes: tuple[str, ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""

        def figures(each: Difference | None) -> dict[str, Any] | None:
            names = ("tokens", "largest", "kl", "kl_90")
            return None if each is None else {name: getattr(each, name) for name in names}

        plain = ("kind", "checkpoint", "step", "bytes", "files", "quantization", "command", "notes")
        return {
            **{name: getattr(self, name) for name in plain},
            "out": str(self.out),
            "difference": figures(self.difference),
            "reload": figures(self.reload),
        }
