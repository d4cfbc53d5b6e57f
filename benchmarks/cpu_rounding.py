"""What rounding activations to 8 bits costs, and which groups to round finer.

    python benchmarks/cpu_rounding.py

The default model's matrices, dequantised, multiply activations that are rounded as the xeon backend
rounds them for int4 weights: in transformers, so that nothing else differs from exact activations.
Finer means that what rounding left of a group is rounded to 8 bits again. Prints the divergence at
each prompt's last token and over all positions, and for each kind of layer the share of groups that
are rounded finer.
"""

from __future__ import annotations

import statistics
from collections import defaultdict

import cpu
import torch
import transformers
from cpu_accuracy import divergence, prompts
from torch import Tensor

from headstock.checkpoint.pull import ensure
from headstock.cli.table import format_table
from headstock.text import Tokenizer

GROUP = 32
NUM_PROMPTS = 25
KINDS = {
    "q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "o_proj": "output", "gate_proj": "gate-up",
    "up_proj": "gate-up", "down_proj": "down",
}  # fmt: skip
"""Of the layers with int4 weights: the head keeps int8, whose activations have 16 bits."""
HALF = frozenset({"qkv", "output", "down"})
NOTHING = float("inf")


class Rounding:
    """Rounds what goes into every matrix.

    Attributes:
        threshold: Times the row's mean of squared scales, over which a group is rounded finer.
        kinds: Of layers whose groups may be rounded finer.
        shares: By kind: of groups that were.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.threshold, self.kinds = NOTHING, frozenset(KINDS.values())
        self.shares: dict[str, list[float]] = defaultdict(list)
        for name, layer in model.named_modules():
            kind = KINDS.get(name.split(".")[-1])
            if kind is not None:
                layer.register_forward_pre_hook(self._hook(kind))

    def _hook(self, kind: str):
        return lambda _layer, args: (self.round(kind, args[0]),)

    def round(self, kind: str, x: Tensor) -> Tensor:
        """Return ``x`` as integers would stand for it."""
        groups_TGg = x.reshape(-1, x.shape[-1] // GROUP, GROUP)
        whole, scale_TG = to_8_bits(groups_TGg)
        square_TG = scale_TG.square()
        is_finer_TG = square_TG > self.threshold * square_TG.mean(1, keepdim=True)
        if kind in self.kinds and self.threshold < NOTHING:
            self.shares[kind].append(float(is_finer_TG.float().mean()))
            rest, _ = to_8_bits(groups_TGg - whole)
            whole = whole + rest * is_finer_TG[:, :, None]
        return whole.reshape(x.shape)


def to_8_bits(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rounded groups, and their scales."""
    scale = groups.abs().amax(-1) / 127
    inverse = torch.where(scale > 0, 1 / scale, 0.0)
    return (groups * inverse[..., None]).round() * scale[..., None], scale


@torch.inference_mode()
def main() -> None:
    folder = cpu.write_float32(ensure("smollm2"))
    asked = prompts(Tokenizer.from_file(folder / "tokenizer.json"), NUM_PROMPTS)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def distributions() -> list[Tensor]:
        return [model(torch.tensor([ids])).logits[0].log_softmax(-1) for ids in asked]

    exact, rounding = distributions(), Rounding(model)
    rows = []
    every = rounding.kinds
    cases = [("nothing", NOTHING, every), ("all groups of half of the layers", -1.0, HALF)]
    cases += [(f"over {t:g} x the mean", t, every) for t in (0.5, 1, 2, 3, 4, 6, 8)]
    for label, rounding.threshold, rounding.kinds in cases:
        rounding.shares.clear()
        losses = [divergence(w, g) for w, g in zip(exact, distributions(), strict=True)]
        last = statistics.mean(float(loss[-1]) for loss in losses)
        everywhere = float(torch.cat(losses).mean())
        shares = ", ".join(
            f"{kind} {statistics.mean(found):.0%}" for kind, found in rounding.shares.items()
        )
        rows.append((label, f"{last:.5f}", f"{everywhere:.5f}", shares))
    print(format_table(("finer", "last", "everywhere", "share of groups"), rows))


if __name__ == "__main__":
    main()
