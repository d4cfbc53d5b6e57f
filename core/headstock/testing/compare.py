"""Two results of an op: do they agree, and if not, where and by how much."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def disagreement(
    got: Sequence[Tensor],
    wanted: Sequence[Tensor],
    rtol: float,
    atol: float,
    num_real: int | None = None,
) -> str | None:
    """Say how ``got`` is not ``wanted``, or return None.

    Args:
        got: What an implementation returned.
        wanted: What is right; it may have a wider dtype.
        rtol: Accepted difference as a share of the wanted value.
        atol: Accepted difference besides.
        num_real: Rows that count; None: all.
    """
    if len(got) != len(wanted):
        return f"returned {len(got)} tensors, not {len(wanted)}"
    for index, (one, other) in enumerate(zip(got, wanted, strict=True)):
        text = _of_pair(one[:num_real], other[:num_real], rtol, atol)
        if text is not None:
            return f"result {index}: {text}" if len(got) > 1 else text
    return None


def _of_pair(got: Tensor, wanted: Tensor, rtol: float, atol: float) -> str | None:
    if got.shape != wanted.shape:
        return f"shape {list(got.shape)}, not {list(wanted.shape)}"
    if got.is_floating_point() != wanted.is_floating_point():
        return f"dtype {got.dtype}, not {wanted.dtype}"
    kind = torch.float64 if wanted.is_floating_point() else torch.int64
    got, wanted = got.detach().to("cpu", kind), wanted.detach().to("cpu", kind)
    is_exact = kind is torch.int64
    is_close = got == wanted if is_exact else _close(got, wanted, rtol, atol)
    if bool(is_close.all()):
        return None
    difference = (got - wanted).abs().double().nan_to_num(torch.inf).masked_fill(is_close, 0)
    worst = int(difference.argmax())
    place = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), got.shape))
    was, should = got.flatten()[worst].item(), wanted.flatten()[worst].item()
    allowed = "exactly" if is_exact else f"within {atol:g} + {rtol:g} of it"
    absolute = float(difference.flatten()[worst])
    relative = absolute / abs(should) if should else float("inf")
    return (
        f"{int((~is_close).sum())} of {got.numel()} elements of {list(got.shape)} are off; worst"
        f" at {place}: got {was:.6g}, wanted {should:.6g} {allowed}"
        f" (absolute {absolute:.3g}, relative {relative:.3g})"
    )


def _close(got: Tensor, wanted: Tensor, rtol: float, atol: float) -> Tensor:
    return torch.isclose(got, wanted, rtol=rtol, atol=atol, equal_nan=True)
