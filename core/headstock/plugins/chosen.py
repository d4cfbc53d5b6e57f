"""The backend that serves, and what its hooks and the other plugins' bring to this process."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from headstock.errors import ConfigError, HeadstockError, PluginError
from headstock.ops.base import OpRegistry
from headstock.plugins.guard import describe
from headstock.plugins.loader import PLUGINS, PluginRecord, Plugins, State

if TYPE_CHECKING:
    from headstock.ops.communication import Group
    from headstock.plugins.device import Device
    from headstock.plugins.drafters import DrafterRegistry
    from headstock.plugins.hooks import ConfigPatch, GroupInfo
    from headstock.plugins.probe import Probe
    from headstock.structured.provider import GrammarRegistry


def backend_options(flags: Sequence[str]) -> dict[str, str]:
    """Return name to value from ``name=value`` settings.

    Raises:
        ConfigError: One is not of that form, or two have one name.
    """
    options: dict[str, str] = {}
    for flag in flags:
        name, separator, value = flag.partition("=")
        if not (name and separator and value) or name in options:
            raise ConfigError(
                f"backend_option is {flag!r}{' again' if name in options else ''}.",
                remedy="Write name=value, each name once.",
            )
        options[name] = value
    return options


@dataclass(frozen=True, slots=True)
class Chosen:
    """A loaded backend whose probe said AVAILABLE.

    Attributes:
        record: The backend.
        probe: What it found.
        plugins: All plugins, for the hooks that any of them may have.
        notes: Lines for the banner: what is installed or present here and does not serve.
        failures: Lines on plugins whose hooks raised, which were passed over for it.
    """

    record: PluginRecord
    probe: Probe
    plugins: Plugins = field(repr=False)
    notes: tuple[str, ...] = ()
    failures: list[str] = field(default_factory=list[str])

    @property
    def name(self) -> str:
        """The backend's name."""
        return self.record.name

    def open_device(
        self, index: int, num_threads: int, options: Mapping[str, str] | None = None
    ) -> Device:
        """Open device ``index``; see ``headstock_device``. Engine process only.

        Raises:
            ConfigError: There are options, and the backend takes none.
            PluginError: The hook raised, or returned nothing.
        """
        hook = "headstock_device"
        if options and not self.plugins.takes(self.record, hook, "options"):
            raise ConfigError(
                f"backend_option names {', '.join(options)}; backend {self.name!r} has no options.",
                remedy="Drop --backend-option.",
            )
        answers = self._call(
            self.record, hook, index=index, num_threads=num_threads, options=options or {}
        )
        if not answers:
            raise PluginError(
                f"Backend {self.name!r} opened no device {index}.",
                remedy="Look at `headstock backends` for the devices that it has.",
            )
        return answers[0]

    def offer_ops(self, device: Device) -> OpRegistry:
        """Collect what this backend and the plugins offer for ``device``.

        A plugin that raises is passed over, with all that it offered, and noted in
        :attr:`failures`.

        Raises:
            PluginError: The backend itself raised, or offers something that does not fit.
        """
        registry = OpRegistry()
        for record in self._contributors():
            with self._passing_over(record), registry.all_or_nothing():
                self._call(record, "headstock_register_ops", registry=registry, device=device)
        return registry

    def name_grammars(self, registry: GrammarRegistry) -> None:
        """Have this backend and the plugins name their grammar providers.

        Raises:
            PluginError: One of them raised, or two use one name.
        """
        for record in self._contributors():
            self._call(record, "headstock_register_grammars", registry=registry)

    def name_drafters(self, registry: DrafterRegistry) -> None:
        """Have this backend and the plugins name their drafters.

        Raises:
            PluginError: One of them raised, or two use one name.
        """
        for record in self._contributors():
            self._call(record, "headstock_register_drafters", registry=registry)

    def join_group(self, group: GroupInfo, device: Device) -> Group | None:
        """Join ``group`` by the backend's own means; None: it leaves that to the host's network."""
        answers = self._call(self.record, "headstock_communication", group=group, device=device)
        return answers[0] if answers else None

    def config_patches(self, settings: Mapping[str, object], device: Device) -> list[ConfigPatch]:
        """Collect the settings that this backend and the plugins want changed."""
        patches: list[ConfigPatch] = []
        for record in self._contributors():
            with self._passing_over(record):
                answers = self._call(
                    record, "headstock_configure", settings=settings, device=device
                )
                patches += [patch for answer in answers for patch in answer]
        return patches

    @contextmanager
    def _passing_over(self, record: PluginRecord) -> Generator[None]:
        """Note the failure of a plugin that was not asked for; that of the backend goes through."""
        try:
            yield
        except HeadstockError as error:
            if record is self.record:
                raise
            self.failures.append(
                f"plugin {record.name} ({record.dist}) is passed over: {error.problem}"
            )

    def _contributors(self) -> list[PluginRecord]:
        general = [r for r in self.plugins.records if r.group == PLUGINS]
        return [self.record, *(r for r in general if r.state is State.LOADED)]

    def _call(self, record: PluginRecord, hook: str, **arguments: object) -> list[Any]:
        try:
            return self.plugins.call(record, hook, **arguments)
        except HeadstockError:
            raise
        except Exception as error:  # the boundary to foreign code, as in `guarded`
            raise PluginError(
                f"{hook} of plugin {record.name!r} ({record.dist} {record.version}) raised"
                f" {describe(error)}.",
                remedy=f"Report it to {record.dist}, or pass --disable-plugin {record.name}.",
            ) from error
