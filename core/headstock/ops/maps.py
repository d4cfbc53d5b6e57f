"""What convolutional encoders compute: maps, which have features at each place of a grid.

Places of a map lie row after row, map after map; all maps of a call have one height and width.

Shapes: N places that come in, M that go out, C and O features, K size of a kernel, H heads, E size
of a head, P values of a patch.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from headstock.ops.base import op


@op()
def lay_out_patches(x_NP: Tensor, *, height: int, width: int, channels: int) -> Tensor:
    """Return maps of pixels, of square patches whose values lie channel by channel.

    Args:
        x_NP: Patches of an image row after row. [N, P]
        height: Patches of an image in height.
        width: Likewise.
        channels: C.

    Returns:
        [N P / C, C]
    """
    side = round((x_NP.shape[1] // channels) ** 0.5)
    patches = x_NP.reshape(-1, height, width, channels, side, side)
    return patches.permute(0, 1, 4, 2, 5, 3).reshape(-1, channels)


@op()
def convolve(
    x_NC: Tensor,
    kernel_OGKK: Tensor,
    bias_O: Tensor | None,
    *,
    height: int,
    width: int,
    stride: int,
) -> Tensor:
    """Convolve maps, with zeros around them: as many places go out as strides fit in.

    Where what is around is odd, there is one row, or column, more of it behind the map.

    Args:
        x_NC: [N, C]
        kernel_OGKK: In the same dtype; G divides C: output features are shared out among C / G
            groups of input features. [O, G, K, K]
        bias_O: In the same dtype; None: there is none. [O]
        height: Of a map. Places.
        width: Likewise.
        stride: Places from one that goes out to the next.

    Returns:
        Maps of ceil(height / stride) times ceil(width / stride). [M, O]
    """
    size = kernel_OGKK.shape[2]
    maps = x_NC.unflatten(0, (-1, height, width)).permute(0, 3, 1, 2)
    around = [
        end
        for extent in (width, height)
        for total in [max((-(-extent // stride) - 1) * stride + size - extent, 0)]
        for end in (total // 2, total - total // 2)
    ]
    groups = x_NC.shape[1] // kernel_OGKK.shape[1]
    padded = functional.pad(maps, around)
    out = functional.conv2d(padded, kernel_OGKK, bias_O, stride, groups=groups)
    return out.permute(0, 2, 3, 1).reshape(-1, out.shape[1])


@op()
def attend_to_maps(
    q_MC: Tensor, k_NE: Tensor, v_NE: Tensor, *, num_maps: int, num_heads: int
) -> Tensor:
    """Attend from all places of a map to all of another one, whose keys all heads share.

    Args:
        q_MC: Queries of some maps. [M, H E]
        k_NE: Keys of as many. [N, E]
        v_NE: Values. [N, E]
        num_maps: Divides M and N.
        num_heads: H.

    Returns:
        [M, H E]

    Source:
        Shazeer 2019, "Fast Transformer Decoding", section 3: multi-query attention.
    """
    q_BHME = q_MC.unflatten(0, (num_maps, -1)).unflatten(2, (num_heads, -1)).transpose(1, 2)
    k_BHNE, v_BHNE = (
        x_NE.unflatten(0, (num_maps, -1)).unsqueeze(1).expand(-1, num_heads, -1, -1)
        for x_NE in (k_NE, v_NE)
    )
    out_BHME = functional.scaled_dot_product_attention(q_BHME, k_BHNE, v_BHNE)
    return out_BHME.transpose(1, 2).reshape(q_MC.shape)
