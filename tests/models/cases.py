"""Every configuration that is compared with transformers."""

from __future__ import annotations

from tests.models.deepseek_v4_cases import DEEPSEEK_V4, DEEPSEEK_V4_HUB
from tests.models.family_cases import PLAIN
from tests.models.gemma_cases import GEMMA
from tests.models.hub_cases import HUB

CASES = [*PLAIN, *DEEPSEEK_V4, *GEMMA, *HUB, *DEEPSEEK_V4_HUB]
