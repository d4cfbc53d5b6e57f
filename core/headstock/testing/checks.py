"""An implementation against its op's cases: what the kit's op tests report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from headstock.ops.base import Implementation, Op
from headstock.ops.cases.base import Bench, Case, as_tensors
from headstock.ops.cases.table import cases_of
from headstock.plugins.guard import Failure, guarded
from headstock.testing.compare import disagreement


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A case that an implementation got wrong.

    Attributes:
        op: The op's name.
        provider: Whose implementation it is.
        dtype: Of the activations.
        case: The case's label and sizes.
        error: What was wrong, where and by how much.
    """

    op: str
    provider: str
    dtype: str
    case: str
    error: str

    def __str__(self) -> str:
        return f"{self.op} by {self.provider}, {self.dtype}, {self.case}: {self.error}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the cases of one op showed of one implementation.

    Attributes:
        num_checked: Cases that it accepted.
        findings: Those that it got wrong.
        refusals: Why it refused the others; distinct reasons.
        kinds: Features, layouts of weights, and dtypes and formats of pages, of the accepted cases.
    """

    num_checked: int
    findings: list[Finding]
    refusals: list[str]
    kinds: frozenset[str] = frozenset()


def judge(op: Op[..., Any], implementation: Implementation, benches: list[Bench]) -> Verdict:
    """Run the cases of ``op`` that ``implementation`` accepts.

    The benches are tried in turn until it accepts something: what stores into pages accepts one
    provider's pages only.
    """
    verdict = Verdict(0, [], [])
    for bench in benches:
        verdict = _judge_on(op, implementation, bench)
        if verdict.num_checked:
            break
    return verdict


def _judge_on(op: Op[..., Any], implementation: Implementation, bench: Bench) -> Verdict:
    cases = cases_of(op)
    assert cases is not None, f"op {op.name} has no cases"
    num_checked, findings, refusals = 0, list[Finding](), dict[str, None]()
    kinds: set[str] = set()
    for case in cases(bench):
        reason = implementation.requires.reason_against(case.spec, bench.device.capabilities)
        if reason is not None:
            refusals[reason] = None
            continue
        num_checked += 1
        kinds |= {*case.spec.kinds, *case.spec.features}
        error = wrong_outcome(op, implementation, case)
        if error is not None:
            findings.append(
                Finding(
                    op=op.name,
                    provider=implementation.provider,
                    dtype=case.spec.dtype,
                    case=describe(case),
                    error=error,
                )
            )
    return Verdict(num_checked, findings, list(refusals), frozenset(kinds))


def wrong_outcome(op: Op[..., Any], implementation: Implementation, case: Case) -> str | None:
    """Say what ``implementation`` got wrong in ``case``, or return None."""
    outcome = guarded(lambda: case.outcome(implementation.run))
    if isinstance(outcome, Failure):
        return f"raised {outcome.reason}"
    if case.check is not None:
        return case.check(outcome.value)
    wanted = as_tensors(case.expected()) if case.expected else case.outcome(op.reference)
    rtol, atol = case.tolerance or op.tolerance.of(case.spec.dtype)
    return disagreement(outcome.value, wanted, rtol, atol, case.num_real)


def describe(case: Case) -> str:
    """Return the label with the sizes that the op was resolved for."""
    sizes = ", ".join(f"{name} {size}" for name, size in case.spec.sizes.items())
    return f"{case.label} ({sizes})" if sizes else case.label
