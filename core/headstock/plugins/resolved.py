"""The resolved plan: which provider computes what, as data that ranks compare and logs show."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import msgspec

from headstock.errors import PluginError
from headstock.ops.base import Resolution, Spec
from headstock.plugins.chosen import Chosen
from headstock.plugins.hooks import HOOK_API


class ResolvedOp(msgspec.Struct, frozen=True, order=True, forbid_unknown_fields=True):
    """One op under one spec, and who computes it.

    Attributes:
        op: Its name.
        spec: What was asked, as text: ``float32 head_dim=64 +sliding_window``.
        provider: Who computes it.
    """

    op: str
    spec: str
    provider: str


class ResolvedPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a process computes with. Two processes may share a model when theirs are equal.

    Attributes:
        headstock: Version of the core.
        backend: The backend's name.
        dist: The distribution that brings it.
        version: Of that distribution.
        ops: Every distinct op, sorted.
    """

    headstock: str
    backend: str
    dist: str
    version: str
    hook_api: tuple[int, int]
    ops: list[ResolvedOp]

    @property
    def fingerprint(self) -> str:
        """Digest of all fields, equal in every process that resolved the same. 16 hex digits."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:16]

    @property
    def summary(self) -> str:
        """Return "12 xeon, 3 reference" for the banner, most first."""
        counts: dict[str, int] = {}
        for op in self.ops:
            counts[op.provider] = counts.get(op.provider, 0) + 1
        ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        return ", ".join(f"{count} {provider}" for provider, count in ranked)


def resolved_plan(chosen: Chosen, resolutions: Iterable[Resolution]) -> ResolvedPlan:
    """Describe what ``chosen`` computes with, once a model is built.

    ``resolutions`` is ``Resolver.resolutions``.
    """
    from headstock import __version__

    ops = {ResolvedOp(r.op, describe_spec(r.spec), r.provider) for r in resolutions}
    return ResolvedPlan(
        headstock=__version__,
        backend=chosen.name,
        dist=chosen.record.dist,
        version=chosen.record.version,
        hook_api=chosen.record.api or HOOK_API,
        ops=sorted(ops),
    )


def describe_spec(spec: Spec) -> str:
    """Return ``spec`` in one line, equal for equal specs."""
    sizes = [f"{name}={spec.sizes[name]}" for name in sorted(spec.sizes)]
    features = [f"+{name}" for name in sorted(spec.features)]
    return " ".join([spec.dtype, *spec.kinds, *sizes, *features])


def check_equal(own: ResolvedPlan, leader: ResolvedPlan, *, rank: int) -> None:
    """Refuse to serve when ``rank`` resolved otherwise than rank 0.

    Raises:
        PluginError: Naming the first difference.
    """
    if own.fingerprint == leader.fingerprint:
        return
    for field in ("headstock", "backend", "dist", "version", "hook_api"):
        mine, theirs = getattr(own, field), getattr(leader, field)
        if mine != theirs:
            difference = f"{field} is {mine} there and {theirs} on rank 0"
            break
    else:
        mine = {(op.op, op.spec): op.provider for op in own.ops}
        theirs = {(op.op, op.spec): op.provider for op in leader.ops}
        key = min(k for k in mine.keys() | theirs.keys() if mine.get(k) != theirs.get(k))
        name, spec = key
        difference = (
            f"{name} ({spec}) is computed by {mine.get(key, 'no provider')} there and by"
            f" {theirs.get(key, 'no provider')} on rank 0"
        )
    raise PluginError(
        f"Rank {rank} would compute otherwise than rank 0: {difference}.",
        remedy="Install the same packages for every rank.",
    )
