"""What an op is, who implements it, and how one implementation is chosen.

An op is its reference: a plain PyTorch function (or, for ops that keep state or packed weights, a
builder of a callable object). A *provider* offers implementations with what they require, as
data. :class:`Resolver` chooses one when a layer is built; nothing here runs per token.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, cast

from headstock.errors import ConfigError, PluginError, UnsupportedError, did_you_mean

if TYPE_CHECKING:
    from headstock.ops.device import OpDevice

P = ParamSpec("P")
R = TypeVar("R")

REFERENCE = "reference"
CORE, OF = "headstock", "::"
"""The package whose ops have plain names, and what stands between another package and its op's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What is known of an op's arguments when the layer that calls it is built.

    Attributes:
        dtype: Of the activations, as in ``str(torch.dtype)`` without ``torch.``.
        sizes: Static sizes by name, such as ``head_dim`` or ``in_features``.
        layout: Canonical layout of the weights, as of all that follow "" where it does not matter.
        page_dtype: Of the pages that a provider of attention keeps.
        page_format: Tag of the page format of the provider whose pages are written or read.
        architecture: Of the model whose whole step is computed.
        features: What is asked beyond the plain op. A provider that does not declare every one
            of them is refused, so that a new feature never meets an old kernel unnoticed.
    """

    dtype: str
    sizes: Mapping[str, int] = field(default_factory=dict[str, int])
    layout: str = ""
    page_dtype: str = ""
    page_format: str = ""
    architecture: str = ""
    features: frozenset[str] = frozenset()

    @property
    def kinds(self) -> tuple[str, ...]:
        """What is asked by name, apart from features: those of the four that matter."""
        four = (self.layout, self.page_dtype, self.page_format, self.architecture)
        return tuple(name for name in four if name)


def spec_of(asked: Any, *sizes: str, features: frozenset[str] = frozenset()) -> Spec:
    """Return what an op is resolved for whose provider is built for a spec of its own.

    Args:
        asked: That spec: it has ``dtype``, and ``kv_dtype`` where its pages may have another.
        sizes: Names of its fields that are sizes.
        features: What is asked beyond the plain op.
    """
    page_dtype = getattr(asked, "kv_dtype", "")
    return Spec(
        dtype=str(asked.dtype).removeprefix("torch."),
        sizes={name: getattr(asked, name) for name in sizes},
        page_dtype=str(page_dtype).removeprefix("torch."),
        features=features,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Which values of a size are accepted; every condition given must hold."""

    only: frozenset[int] = frozenset()
    multiple_of: int = 1
    at_least: int = 0
    at_most: int | None = None

    def reason_against(self, name: str, value: int) -> str | None:
        """Say why ``value`` is refused, or None when it is accepted."""
        if self.only and value not in self.only:
            return f"{name} {value} not in {sorted(self.only)}"
        if value % self.multiple_of:
            return f"{name} {value} not a multiple of {self.multiple_of}"
        if value < self.at_least:
            return f"{name} {value} under {self.at_least}"
        if self.at_most is not None and value > self.at_most:
            return f"{name} {value} over {self.at_most}"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Requires:
    """What an implementation needs, as data: compared once, shown by the doctor.

    Attributes:
        dtypes: Activation dtypes; empty: any.
        layouts: Canonical layouts of weights; empty: any, as of all that follow. What plugins of
            before ``HOOK_API`` 2.3 say of pages and of architectures by it counts until 3.0.
        page_dtypes: Dtypes of pages that it keeps.
        page_formats: Tags of the page formats that it writes to or reads.
        architectures: Models whose whole step it computes.
        features: Features it implements.
        sizes: Accepted sizes by name; names not listed are accepted whatever they are.
        capabilities: Names that the device's ``capabilities`` must hold, such as ``avx2``.
    """

    dtypes: frozenset[str] = frozenset()
    layouts: frozenset[str] = frozenset()
    page_dtypes: frozenset[str] = frozenset()
    page_formats: frozenset[str] = frozenset()
    architectures: frozenset[str] = frozenset()
    features: frozenset[str] = frozenset()
    sizes: Mapping[str, Sizes] = field(default_factory=dict[str, Sizes])
    capabilities: frozenset[str] = frozenset()

    def reason_against(self, spec: Spec, capabilities: frozenset[str]) -> str | None:
        """Say why ``spec`` is refused on a device with ``capabilities``, or None."""
        lacking = self.capabilities - capabilities
        if lacking:
            return f"device lacks {', '.join(sorted(lacking))}"
        if self.dtypes and spec.dtype not in self.dtypes:
            return f"dtype {spec.dtype} not in {sorted(self.dtypes)}"
        for what, name, accepted in (
            ("layout", next(iter(spec.kinds), ""), self.layouts),
            ("page dtype", spec.page_dtype, self.page_dtypes),
            ("page format", spec.page_format, self.page_formats),
            ("architecture", spec.architecture, self.architectures),
        ):
            if accepted and name not in accepted:
                return f"{what} {name or 'none'} not in {sorted(accepted)}"
        unknown = spec.features - self.features
        if unknown:
            return f"lacks features: {', '.join(sorted(unknown))}"
        for name, accepted in self.sizes.items():
            reason = accepted.reason_against(name, spec.sizes[name]) if name in spec.sizes else None
            if reason:
                return reason
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """How far a provider may be from the reference, by activation dtype: (relative, absolute)."""

    by_dtype: Mapping[str, tuple[float, float]]

    def of(self, dtype: str) -> tuple[float, float]:
        """Return (rtol, atol) for ``dtype``; integers, and what is not listed, must be equal."""
        return self.by_dtype.get(dtype, (0.0, 0.0))


DEFAULT_TOLERANCE = Tolerance(
    by_dtype={"float32": (1e-4, 1e-5), "float16": (4e-3, 4e-3), "bfloat16": (2e-2, 2e-2)}
)


@dataclass(frozen=True, slots=True, eq=False)
class Op(Generic[P, R]):
    """One thing that hardware must compute.

    Attributes:
        name: As in ``--op name=provider``; ``package::name`` for an op from outside.
        reference: The specification: for a function op the function; for a built op
            ``(spec, device) -> callable``.
        is_built: Whether providers are builders.
        tolerance: For the conformance kit.
        cases: ``(bench)`` to ``Case`` objects for the kit: representative and edge shapes. None
            for the ops of this package: ``headstock.ops.cases.table`` has theirs.
        features: Features that the reference implements.
        reads_host: Whether the reference computes steps with rows of several tokens only where the
            host knows the rows: a step of them cannot be captured then. A device that captures
            steps needs a provider of such an op.
    """

    name: str
    reference: Callable[P, R]
    is_built: bool = False
    tolerance: Tolerance = DEFAULT_TOLERANCE
    cases: Callable[..., Iterable[Any]] | None = None
    features: frozenset[str] = frozenset()
    reads_host: bool = False

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the reference."""
        return self.reference(*args, **kwargs)


ALL_OPS: dict[str, Op[..., Any]] = {}
"""Every op by name; filled by the modules of this room, and by plugins that define their own."""


def op(
    *,
    is_built: bool = False,
    tolerance: Tolerance = DEFAULT_TOLERANCE,
    cases: Callable[..., Iterable[Any]] | None = None,
    features: frozenset[str] = frozenset(),
    reads_host: bool = False,
) -> Callable[[Callable[P, R]], Op[P, R]]:
    """Declare the decorated reference function to be an op.

    Its name is the function's; outside of Headstock, the package's and the function's, as
    ``package::function``, so that two packages may each have an op ``add``.

    Raises:
        PluginError: The package has an op of that name already.
    """

    def declare(reference: Callable[P, R]) -> Op[P, R]:
        package = reference.__module__.partition(".")[0]
        name = reference.__name__ if package == CORE else f"{package}{OF}{reference.__name__}"
        if name in ALL_OPS:
            raise PluginError(
                f"Op {name!r} is declared twice: in {ALL_OPS[name].reference.__module__} and in"
                f" {reference.__module__}.",
                remedy="Give one of the functions another name.",
            )
        declared = Op(name, reference, is_built, tolerance, cases, features, reads_host)
        ALL_OPS[name] = declared
        return declared

    return declare


@dataclass(frozen=True, slots=True, kw_only=True)
class Implementation:
    """One provider's way to compute an op.

    Attributes:
        op: The op's name.
        provider: Who wrote it, such as ``xeon`` or ``triton``.
        run: The callable, or the builder for a built op. Same signature as the reference.
        requires: What it needs.
        priority: The highest that accepts wins; the reference has 0.
    """

    op: str
    provider: str
    run: Callable[..., Any]
    requires: Requires = Requires()
    priority: int = 100


class OpRegistry:
    """The implementations that plugins offered, filled at start-up."""

    def __init__(self) -> None:
        self._offered: dict[str, list[Implementation]] = {}

    def add(
        self,
        op: Op[..., Any],
        provider: str,
        run: Callable[..., Any],
        *,
        requires: Requires = Requires(),
        priority: int = 100,
    ) -> None:
        """Offer ``run`` for ``op``.

        Raises:
            PluginError: ``op`` is no op, the signature is not the reference's, or the provider
                offers it twice with the same requirements.
        """
        given = cast("object", op)
        if not isinstance(given, Op):
            raise PluginError(
                f"Provider {provider!r} offers {given!r}, which is not an op.",
                remedy="Pass the op itself, such as headstock.ops.norm.rms_norm.",
            )
        check_signature(op, provider, run)
        offered = self._offered.setdefault(op.name, [])
        if any(other.provider == provider and other.requires == requires for other in offered):
            raise PluginError(
                f"Provider {provider!r} offers op {op.name!r} twice for the same requirements.",
                remedy="Offer it once, or with different `requires`.",
            )
        offered.append(
            Implementation(
                op=op.name, provider=provider, run=run, requires=requires, priority=priority
            )
        )

    @contextmanager
    def all_or_nothing(self) -> Generator[None]:
        """Take back what was offered within the block if it raises."""
        before = {name: list(offered) for name, offered in self._offered.items()}
        try:
            yield
        except BaseException:
            self._offered = before
            raise

    def offered(self, op: Op[..., Any]) -> Sequence[Implementation]:
        """Return what is offered for ``op``, best first, its reference last."""
        reference = Implementation(
            op=op.name,
            provider=REFERENCE,
            run=op.reference,
            requires=Requires(features=op.features),
            priority=0,
        )
        ranked = sorted(self._offered.get(op.name, []), key=lambda i: (-i.priority, i.provider))
        return [*ranked, reference]


def check_signature(op: Op[..., Any], provider: str, run: Callable[..., Any]) -> None:
    """Refuse an implementation whose parameters are not the reference's.

    It may leave out keywords that have a default: those belong to features, and a provider that
    does not declare a feature is never called with its keyword.

    Raises:
        PluginError: Naming both signatures.
    """
    import inspect

    parameters = list(inspect.signature(op.reference).parameters.values())
    wanted = [(p.name, p.kind) for p in parameters]
    got = [(p.name, p.kind) for p in inspect.signature(run).parameters.values()]
    needed = [
        (p.name, p.kind)
        for p in parameters
        if p.kind is not p.KEYWORD_ONLY or p.default is p.empty or (p.name, p.kind) in got
    ]
    if needed != got:
        raise PluginError(
            f"{provider}: {op.name} takes ({', '.join(name for name, _ in got)}), the op takes"
            f" ({', '.join(name for name, _ in wanted)}).",
            remedy="Give the implementation the reference's parameters, names and kinds alike.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """Who computes an op for one spec, and who was passed over, with the reason."""

    op: str
    spec: Spec
    provider: str
    passed_over: tuple[tuple[str, str], ...]


class Resolver:
    """Chooses implementations for one device; layers ask it while they are built.

    Args:
        registry: What plugins offered.
        device: The device in hand; its ``capabilities`` decide with the spec.
        forced: Op name to provider, from ``--op``. ``all`` stands for every op.
        failures: Why providers are not there that a plugin would have brought, a line each.

    Raises:
        ConfigError: ``forced`` names an op that does not exist.
    """

    def __init__(
        self,
        registry: OpRegistry,
        device: OpDevice,
        forced: Mapping[str, str] | None = None,
        failures: Sequence[str] = (),
    ) -> None:
        self._registry = registry
        self._device = device
        self._forced = dict(forced or {})
        self._failures = failures
        self._chosen: dict[tuple[Any, ...], Callable[..., Any]] = {}
        self.resolutions: list[Resolution] = []
        self.check_forced(but_outside=True)

    def check_forced(self, *, but_outside: bool = False) -> None:
        """Refuse names in ``forced`` that are no ops.

        Args:
            but_outside: Accept names of other packages' ops: a model's ops are declared when its
                class is imported.

        Raises:
            ConfigError: One is no op.
        """
        for name in self._forced:
            is_open = name == "all" or (but_outside and OF in name)
            if not is_open and name not in ALL_OPS:
                raise ConfigError(
                    f"--op names {name!r}, which is not an op.{did_you_mean(name, ALL_OPS)}",
                    remedy=f"Use one of: {', '.join(sorted(ALL_OPS))}.",
                )

    @property
    def device(self) -> OpDevice:
        """The device that is resolved for."""
        return self._device

    def resolve(self, op: Op[P, R], spec: Spec) -> Callable[P, R]:
        """Return the callable for ``op`` under ``spec``; the same one for an equal spec.

        For a built op the callable is the provider's builder, ``(spec, device) -> object``.

        Raises:
            ConfigError: A forced provider does not offer the op.
            UnsupportedError: A forced provider, or every provider, refuses the spec.
        """
        key = self._key(op, spec)
        if key not in self._chosen:
            self._chosen[key] = self._choose(op, spec).run
        return self._chosen[key]

    def is_offered(self, op: Op[..., Any]) -> bool:
        """Whether a provider besides the reference offers ``op``."""
        return len(self._registry.offered(op)) > 1

    def own(self, op: Op[P, R], spec: Spec) -> Callable[P, R] | None:
        """Return the callable of the best provider, or None where the reference would be it.

        For ops and features that a layer can do without: a miss is nothing that was chosen.
        """
        for candidate in self._candidates(op):
            if candidate.requires.reason_against(spec, self._device.capabilities) is None:
                return None if candidate.provider == REFERENCE else self.resolve(op, spec)
        return None

    @staticmethod
    def _key(op: Op[..., Any], spec: Spec) -> tuple[Any, ...]:
        sizes = tuple(sorted(spec.sizes.items()))
        return (op.name, spec.dtype, spec.kinds, spec.features, sizes)

    def _candidates(self, op: Op[..., Any]) -> Sequence[Implementation]:
        """Return who may compute ``op``, best first: the forced provider where one is."""
        offered = self._registry.offered(op)
        forced = self._forced.get(op.name, self._forced.get("all"))
        candidates = [i for i in offered if forced in (None, i.provider)]
        if not candidates and op.name not in self._forced:
            return [i for i in offered if i.provider == REFERENCE]
        return candidates

    def _choose(self, op: Op[..., Any], spec: Spec) -> Implementation:
        candidates = self._candidates(op)
        if not candidates:
            forced = self._forced[op.name]
            names = list(dict.fromkeys(i.provider for i in self._registry.offered(op)))
            failed = "".join(f" The {failure}." for failure in self._failures)
            raise ConfigError(
                f"--op {op.name}={forced}: no such provider."
                f"{did_you_mean(forced, names)}{failed}".replace("..", "."),
                remedy=f"Offered for it: {', '.join(names)}.",
            )
        passed_over: list[tuple[str, str]] = []
        for candidate in candidates:
            reason = candidate.requires.reason_against(spec, self._device.capabilities)
            if reason is None:
                self.resolutions.append(
                    Resolution(
                        op=op.name,
                        spec=spec,
                        provider=candidate.provider,
                        passed_over=tuple(passed_over),
                    )
                )
                return candidate
            passed_over.append((candidate.provider, reason))
        reasons = "; ".join(f"{provider}: {reason}" for provider, reason in passed_over)
        raise UnsupportedError(
            f"No provider computes {op.name} as asked ({reasons}).",
            remedy="Drop the --op flag, or use `headstock doctor` to see what is offered.",
        )
