"""Every configuration that is compared with transformers."""

from __future__ import annotations

from tests.models.family_cases import PLAIN
from tests.models.gemma_cases import GEMMA
from tests.models.hub_cases import HUB

CASES = [*PLAIN, *GEMMA, *HUB]
