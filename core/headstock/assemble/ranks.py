"""Several ranks that share a model: who they are, on which device, and that they agree."""

from __future__ import annotations

import torch

from headstock.assemble.compute import Opened
from headstock.errors import PluginError
from headstock.ops.communication import Group
from headstock.parallel import RankAddress
from headstock.parallel.host_group import HostGroup
from headstock.plugins.resolved import ResolvedPlan


def join_group(opened: Opened, address: RankAddress) -> Group:
    """Join the ranks that share every layer, by the backend's own means where it has some."""
    info = address.group()
    return opened.chosen.join_group(info, opened.device) or HostGroup(info)


def check_agreement(plan: ResolvedPlan, group: Group, device: torch.device) -> None:
    """Refuse to serve when the ranks would compute with different implementations.

    Raises:
        PluginError: They would.
    """
    if group.size == 1:
        return
    # As two words of 32 bits: a tensor has no unsigned 64-bit integers everywhere.
    words = [int(plan.fingerprint[:8], 16), int(plan.fingerprint[8:], 16)]
    own = torch.tensor([words], dtype=torch.int64, device=device)
    found = group.all_gather(own).view(group.size, 2).tolist()
    if any(pair != found[0] for pair in found):
        odd = [rank for rank, pair in enumerate(found) if pair != found[0]]
        raise PluginError(
            f"Ranks {odd} resolved other implementations of the model's ops than rank 0.",
            remedy="Install the same packages for every rank.",
        )
