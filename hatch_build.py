"""Builds what is compiled when the package is built or installed editable: the xeon kernels.

Where there is no compiler the package is built without the kernels; the doctor then says why they
are missing, and PyTorch computes instead. The package that carries a compiler is no dependency of
the build: an index that lacks it would stop the install. ``make`` fetches it where it can.
"""

from __future__ import annotations

import importlib.util
import platform
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = Path("backends/xeon/headstock_xeon")


class NativeBuildHook(BuildHookInterface[Any]):
    """Compiles the native library into its package before the files are collected."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile; a wheel with the library is for this platform, any Python 3."""
        if self.target_name != "wheel":
            return
        build = _load(Path(self.root) / PACKAGE / "build.py")
        try:
            library = build.build()
        except build.BuildError as error:
            self.app.display_warning(f"{build.FAILED}, PyTorch will compute instead: {error}")
            build_data["artifacts"].append(f"{PACKAGE.as_posix()}/{build.REASON.name}")
            return
        build_data["artifacts"].append(f"{PACKAGE.as_posix()}/{library.name}")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{_platform_tag()}"


def _platform_tag() -> str:
    if sys.platform == "linux":
        return f"linux_{platform.machine()}"
    import sysconfig

    return sysconfig.get_platform().replace("-", "_").replace(".", "_")


def _load(path: Path) -> ModuleType:
    """Import the build module from its file: its package needs what is not installed yet."""
    spec = importlib.util.spec_from_file_location("headstock_xeon_build", path)
    assert spec is not None, f"no module at {path}"
    assert spec.loader is not None, f"no loader for {path}"
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
