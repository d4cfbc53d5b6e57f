"""The certified plugin, with a mutation. Importing this loads no torch."""

from __future__ import annotations

import functools
from typing import Any

from headstock.plugins.hooks import hookimpl
from headstock.plugins.probe import Probe, ProbedDevice, Status

PROVIDER = "mutant"


class Mutant:
    """The hooks of a plugin with one thing wrong."""

    HOOK_API = (2, 1)

    def __init__(self, name: str) -> None:
        self._name = name

    @functools.cached_property
    def _mutation(self) -> Any:
        from headstock_mutants.every import MUTATIONS

        return MUTATIONS.get(self._name)

    @hookimpl
    def headstock_probe(self) -> Any:
        devices = (ProbedDevice(index=0, name="host", arch="any", is_host=True),)
        probe = Probe(status=Status.AVAILABLE, reason="for tests", score=1, devices=devices)
        if not self._name.startswith("probe_"):
            return probe
        from headstock_mutants.probes import PROBES

        return PROBES[self._name](probe)

    @hookimpl
    def headstock_device(self, index: int, num_threads: int) -> Any:
        import headstock_acme

        device = headstock_acme.headstock_device(index, num_threads)
        change = self._mutation and self._mutation.device
        return change(device) if change else device

    @hookimpl
    def headstock_register_ops(self, registry: Any, device: Any) -> None:
        import headstock_acme

        from headstock.ops import load_all_ops
        from headstock.ops.base import Requires

        entries = _Entries(registry, self._mutation)
        headstock_acme.headstock_register_ops(entries, device)
        for op in load_all_ops().values():
            requires = Requires(features=op.features)
            entries.add(op, PROVIDER, op.reference, requires=requires, priority=50)

    @hookimpl
    def headstock_communication(self, group: Any, device: Any) -> Any:
        import headstock_acme

        joined = headstock_acme.headstock_communication(group)
        change = self._mutation and self._mutation.group
        return change(joined) if change else joined


class _Entries:
    """A registry that enters what it is given as the mutant's, changed where the mutation says."""

    def __init__(self, registry: Any, mutation: Any) -> None:
        self._registry, self._mutation = registry, mutation

    def add(
        self, op: Any, provider: str, run: Any, *, requires: Any = None, priority: int = 100
    ) -> None:
        mutation = self._mutation
        if mutation is not None and mutation.op == op.name:
            if mutation.run is not None:
                run = functools.wraps(op.reference)(mutation.run(run))
            if mutation.requires is not None:
                requires = mutation.requires(requires)
        self._registry.add(op, PROVIDER, run, requires=requires, priority=priority)
