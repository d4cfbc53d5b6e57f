"""The backend under test: found, opened and asked for its ops as the engine would."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from headstock.errors import PluginError
from headstock.ops import load_all_ops
from headstock.ops.attention import attention, page_format_of
from headstock.ops.base import REFERENCE, Implementation, Op, OpRegistry, Resolver
from headstock.ops.cases.attention import plain_spec
from headstock.ops.cases.base import Bench
from headstock.ops.layouts import CanonicalLayout
from headstock.plugins.chosen import Chosen, backend_options
from headstock.plugins.device import Device
from headstock.plugins.loader import BACKENDS, Plugins
from headstock.plugins.probe import Probe, Status
from headstock.testing.layouts import plugin_layouts

PAGE_SIZES = (16, 5, 64)
"""Page sizes that providers are tried with beside those that they name."""
MOST_LIKED = 2
"""Of the page sizes that a layout lists, how many are tried."""


@dataclass(frozen=True, slots=True)
class Target:
    """An opened backend.

    Attributes:
        chosen: The backend and all plugins.
        device: Its device.
        registry: What it and the plugins offer.
        options: What it was opened with, as ``--backend-option`` has it.
        layouts: Canonical layouts that the plugins bring.
    """

    chosen: Chosen
    device: Device = field(repr=False)
    registry: OpRegistry = field(repr=False)
    options: tuple[str, ...] = ()
    layouts: tuple[CanonicalLayout, ...] = ()

    def claims(self, op: Op[..., Any]) -> list[Implementation]:
        """Return what is offered for ``op`` besides its reference."""
        offered = self.registry.offered(op)
        if self.chosen.name == REFERENCE:
            return list(offered)
        return [i for i in offered if i.provider != REFERENCE]

    def benches(self, dtype: torch.dtype, first: str = "") -> list[Bench]:
        """Return a bench for each provider of attention: ``first``'s, then by preference.

        Providers that refuse ``dtype`` have none.
        """
        names = dict.fromkeys(i.provider for i in self.registry.offered(attention))
        ranked = sorted(names, key=lambda name: name != first)
        sizes = {name: self._page_sizes(dtype, name) for name in ranked}
        return [self._bench(dtype, name, sizes[name]) for name in ranked if sizes[name]]

    def _bench(self, dtype: torch.dtype, provider: str, page_sizes: tuple[int, ...]) -> Bench:
        resolver = Resolver(self.registry, self.device, {"attention": provider})
        is_exact = self.device.facts.needs_host_lengths
        return Bench(
            resolver=resolver,
            dtype=dtype,
            page_sizes=page_sizes,
            has_exact_rows=is_exact,
            layouts=self.layouts,
        )

    def _page_sizes(self, dtype: torch.dtype, provider: str) -> tuple[int, ...]:
        """Return page sizes that ``provider`` takes, found as a model's layers would find them."""
        own = [i for i in self.registry.offered(attention) if i.provider == provider]
        named = (i.requires.sizes.get("page_size") for i in own)
        tried = [size for sizes in named if sizes is not None for size in sorted(sizes.only)]
        taken = dict[int, None]()
        for size in dict.fromkeys([*PAGE_SIZES, *tried]):
            spec = plain_spec(dtype, size)
            for implementation in own:
                requires = implementation.requires
                if requires.reason_against(spec.as_spec(), self.device.capabilities) is None:
                    pages = page_format_of(implementation.run(spec, self.device))
                    taken |= dict.fromkeys(pages.page_sizes[:MOST_LIKED])
                    taken |= dict.fromkeys([size] if pages.accepts(size) else [])
        return tuple(taken)


def expose(backend: str, module: str, folder: Path) -> None:
    """Make ``module`` an installed backend, in this process and those it starts.

    Args:
        backend: The name to find it by.
        module: Importable by what is on ``sys.path``; or ``module:object``.
        folder: Empty; the record of the pretended installation goes there.
    """
    name = module.partition(":")[0]
    record = folder / f"{name}-0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0\n")
    (record / "entry_points.txt").write_text(f"[{BACKENDS}]\n{backend} = {module}\n")
    sys.path.insert(0, str(folder))


def probe(plugins: Plugins, backend: str) -> Probe:
    """Ask the backend whether it can run here.

    Raises:
        PluginError: It is not installed, or does not load.
    """
    records = [r for r in plugins.backends if r.name == backend]
    loaded = [r for r in records if r.state.name == "LOADED"]
    if not loaded:
        reasons = [f"{r.state.value}: {r.reason}" for r in records] or ["not installed"]
        raise PluginError(
            f"Backend {backend!r} does not load ({'; '.join(reasons)}).",
            remedy=records[0].remedy if records else "Install its package, or name its module.",
        )
    return plugins.probe(loaded[0])


def open_target(plugins: Plugins, backend: str, index: int, options: Sequence[str] = ()) -> Target:
    """Open the backend's device and collect its ops.

    Args:
        plugins: What is installed.
        backend: Its name.
        index: Which of its devices.
        options: As ``--backend-option`` has them.

    Raises:
        ConfigError: It refuses an option.
        PluginError: It does not load, cannot run here, or one of its hooks raised.
    """
    answer = probe(plugins, backend)
    if answer.status is not Status.AVAILABLE:
        raise PluginError(
            f"Backend {backend!r} is {answer.status.value}: {answer.reason}.",
            remedy=answer.remedy or "Run the kit where its hardware is.",
        )
    load_all_ops()
    record = next(r for r in plugins.backends if r.name == backend and r.state.name == "LOADED")
    chosen = Chosen(record, answer, plugins)
    device = chosen.open_device(index, 0, backend_options(options))
    layouts = plugin_layouts(plugins)
    return Target(chosen, device, chosen.offer_ops(device), tuple(options), layouts)
