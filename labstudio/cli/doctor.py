"""The checklist before training: what would fail, what might, and how to mend it (`labkit doctor`)."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from labkit.config import GPTConfig, TrainConfig
from labkit.training import runs_dir
from labstudio.cli.doctor_checks import CHECKS, MENDS, NEED_TEXT, Finding, Plan, Status


@dataclass(frozen=True)
class Check:
    """One line of the checklist: what was found, and how to mend it where it is not well."""

    name: str
    status: Status
    detail: str
    mend: str = ""


def run_checks(
    model: GPTConfig,
    train: TrainConfig,
    corpus: str = "shakespeare",
    tokenizer: str = "char",
    stride: int | None = None,
    out: Path | None = None,
) -> list[Check]:
    """Every check, in the order of the checklist. None raises: an exception becomes a failed check.

    corpus: a name or a path.  tokenizer: "char", "bpe" or "gpt2".  stride: tokens from one training
    window to the next, the context length when None.  out: the folder that runs are written to.
    """
    plan = Plan(model, train, corpus, tokenizer, stride, Path(out) if out else runs_dir())
    checks: list[Check] = []
    for name, check in CHECKS.items():
        if name in NEED_TEXT and any(c.name == "text" and c.status == "fail" for c in checks):
            checks.append(Check(name, "warn", "not checked, because the text does not load"))
        else:
            checks.append(_guarded(name, check, plan))
    return checks


def format_table(checks: list[Check]) -> str:
    """The checks as plain text: status, name and detail, and below each what mends it."""
    width = max(len(check.name) for check in checks)
    lines: list[str] = []
    for check in checks:
        lines += _wrapped(check.detail, f"{check.status:<4}  {check.name:<{width}}  ")
        if check.mend:
            lines += _wrapped(check.mend, " " * (width + 8) + "-> ")
    failed = sum(check.status == "fail" for check in checks)
    warned = sum(check.status == "warn" for check in checks)
    lines += ["", f"{len(checks)} checks: {failed} would fail, {warned} to look at."]
    return "\n".join(lines)


def report(checks: list[Check]) -> int:
    """Print the checklist; returns the exit code, 1 where something would fail."""
    print(format_table(checks))
    return int(any(check.status == "fail" for check in checks))


def _wrapped(text: str, lead: str) -> list[str]:
    return textwrap.wrap(
        text,
        width=max(100, len(lead) + 40),
        initial_indent=lead,
        subsequent_indent=" " * len(lead),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _guarded(name: str, check: Callable[[Plan], Finding], plan: Plan) -> Check:
    try:
        return Check(name, *check(plan))
    except Exception as error:
        message = " ".join(str(error).split()) or type(error).__name__
        return Check(name, "fail", message, MENDS.get(name, "The message names the cause; mend that first."))
