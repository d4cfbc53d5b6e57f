"""What ``--backend-option`` may say to this backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from headstock.errors import ConfigError, did_you_mean

VALUES = {"runtime": ("auto", "xla", "torchtpu"), "pjrt": ("tpu", "cpu")}
MESH = "mesh"
MOST_DEVICES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class TpuOptions:
    """The options, checked.

    Attributes:
        runtime: ``xla``: torch-xla; ``torchtpu``: torch-tpu; ``auto``: the one that fits.
        pjrt: ``tpu``, or ``cpu`` for torch-xla's CPU device, which is for trying things out.
        mesh: Devices that this process computes on together, each with a slice of every layer.
    """

    runtime: str = "auto"
    pjrt: str = "tpu"
    mesh: int = 1


def read_options(given: Mapping[str, str]) -> TpuOptions:
    """Check the options.

    Raises:
        ConfigError: One does not exist, or has a value that it cannot have.
    """
    for name, value in given.items():
        if name == MESH:
            if not value.isdigit() or not 1 <= int(value) <= MOST_DEVICES:
                raise ConfigError(
                    f"backend_option mesh is {value!r}.",
                    remedy=f"Set it to a number of devices, 1 to {MOST_DEVICES}.",
                )
        elif name not in VALUES:
            names = (*VALUES, MESH)
            raise ConfigError(
                f"backend_option names {name!r}, which the tpu backend does not have."
                f"{did_you_mean(name, names)}",
                remedy=f"It has: {', '.join(names)}.",
            )
        elif value not in VALUES[name]:
            raise ConfigError(
                f"backend_option {name} is {value!r}.",
                remedy=f"Set it to one of: {', '.join(VALUES[name])}.",
            )
    options = TpuOptions(
        runtime=given.get("runtime", "auto"),
        pjrt=given.get("pjrt", "tpu"),
        mesh=int(given.get(MESH, "1")),
    )
    if options.runtime == "torchtpu" and (options.pjrt == "cpu" or options.mesh > 1):
        raise ConfigError(
            "backend_option runtime is 'torchtpu', with pjrt=cpu or a mesh.",
            remedy="Those are torch-xla's: drop them, or set runtime=xla.",
        )
    return options
