"""All mutations."""

from headstock_mutants import (  # noqa: F401 - importing enters them
    attention,
    devices,
    groups,
    others,
    probes,
    products,
    requirements,
    steps,
)
from headstock_mutants.mutation import MUTATIONS

__all__ = ["MUTATIONS"]
