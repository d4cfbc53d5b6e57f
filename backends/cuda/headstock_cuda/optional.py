"""Libraries that attend for some rows where they are installed: which, and are they here?

Looking imports none of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from headstock.plugins.hooks import Finding


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """An optional package.

    Attributes:
        provider: Its name in ``--op attention=NAME``.
        module: The module that is used of it, dotted.
        extra: Of this distribution, that installs it.
        computes: What it is for.
    """

    provider: str
    module: str
    extra: str
    computes: str

    @property
    def is_installed(self) -> bool:
        """Whether the module's files are there. A parent may hold other packages' modules too."""
        package, *parts = self.module.split(".")
        spec = find_spec(package)
        places = (spec and spec.submodule_search_locations) or ()
        return any(_is_module(Path(place).joinpath(*parts)) for place in places)

    def finding(self) -> Finding:
        """Say in the doctor whether it is here, and how it would come."""
        text = f"installed: --op attention={self.provider}"
        if not self.is_installed:
            text = f"not installed, optional: pip install 'headstock[{self.extra}]'"
        return Finding(subject=self.computes, is_ok=True, text=text)


FLASH_ATTENTION = Library(
    provider="flash-attention",
    module="flash_attn.cute",
    extra="cuda-fa4",
    computes="FlashAttention 4 (prefill)",
)
FLASHINFER = Library(
    provider="flashinfer",
    module="flashinfer.decode",
    extra="cuda-flashinfer",
    computes="FlashInfer (decode)",
)


def findings() -> Iterator[Finding]:
    """Yield a line of the doctor for each library."""
    yield FLASH_ATTENTION.finding()
    yield FLASHINFER.finding()


def _is_module(path: Path) -> bool:
    return path.is_dir() or path.with_suffix(".py").is_file()
