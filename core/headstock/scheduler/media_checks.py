"""What the engine asks of images before they touch the device.

The API process has checked the client's; here they must not harm anyone else.
"""

from __future__ import annotations

from collections.abc import Sequence

from headstock.errors import RequestError
from headstock.wire.media import DIGEST_BYTES, Grid, MediaItem, MediaLimits, View

NUM_CHANNELS = 3


def check_media(
    media: Sequence[MediaItem],
    limits: MediaLimits | None,
    num_prompt: int,
    max_step_tokens: int,
) -> None:
    """Refuse images that the model cannot take, or whose parts do not fit each other.

    Args:
        media: Of a request, in its order.
        limits: Of the runner; None: it takes none.
        num_prompt: Tokens of the prompt.
        max_step_tokens: Most tokens of a step.

    Raises:
        RequestError: Naming the image, its value and the limit.
    """
    if limits is None:
        raise RequestError(
            f"The request has {len(media)} images; this model takes text only.",
            remedy="Send the text alone, or use a model that takes images.",
            field="media",
        )
    last = first = 0
    for number, item in enumerate(media):
        problem = _problem_of(item, limits)
        follows = item.follows and number > 0 and item.begin == last
        first = first if follows else item.begin
        if problem is None and (item.follows != follows or not 0 <= item.time < item.end - first):
            problem = f"stands at token {item.begin}, at {item.time} of a video from {first} on"
        if problem is None and not last <= item.begin < item.end <= num_prompt:
            problem = f"stands at tokens {item.begin} to {item.end} of {num_prompt}, after {last}"
        if problem is not None:
            raise RequestError(
                f"Image {number} {problem}.",
                remedy="Send a smaller image; report it if that does not help.",
                field="media",
            )
        last = item.end
        if limits.is_whole and item.count > max_step_tokens:
            raise RequestError(
                f"Image {number} has {item.count} tokens, which this model computes in one step;"
                f" a step has {max_step_tokens}.",
                remedy=f"Set --chunked-prefill-size to {item.count} or more.",
                field="media",
            )


def _problem_of(item: MediaItem, limits: MediaLimits) -> str | None:
    """Say what is wrong with ``item`` by itself, if anything is."""
    frames, height, width = item.grid
    if min(item.grid) < 1 or max(item.grid) > limits.max_side:
        return f"has {item.grid} patches; each side has 1 to {limits.max_side}"
    if limits.pooled_frames > 1 and frames > limits.pooled_frames:
        return f"has {frames} frames; the encoder makes one of {limits.pooled_frames} at most"
    patches = frames * height * width
    if item.view is not None and not _fits(item.view, item.grid, limits):
        return f"shows {tuple(item.view)} of {item.grid} patches"
    if limits.tile_side and (height % limits.tile_side or width % limits.tile_side):
        return f"has {item.grid} patches; both sides are multiples of {limits.tile_side}"
    if patches % limits.patches_per_token or item.count != limits.tokens_of(item.grid, item.view):
        return f"has {item.count} tokens for {patches} patches"
    if item.count > limits.max_tokens:
        return f"has {item.count} tokens; the server takes {limits.max_tokens}"
    if len(item.pixels) != patches * limits.patch_bytes:
        return f"has {len(item.pixels)} bytes for {patches} patches of {limits.patch_bytes}"
    if len(item.scale) != NUM_CHANNELS or len(item.shift) != NUM_CHANNELS:
        return f"has {len(item.scale)} scales and {len(item.shift)} shifts, not {NUM_CHANNELS}"
    if len(item.digest) != DIGEST_BYTES:
        return f"has a digest of {len(item.digest)} bytes, not {DIGEST_BYTES}"
    return None


def _fits(view: View, grid: Grid, limits: MediaLimits) -> bool:
    """Whether ``view`` is one of a grid of tiles."""
    frames, height, width = grid
    return (
        limits.tile_side > 0
        and frames == 1
        and 1 <= view.tall <= view.rows <= height
        and 1 <= view.wide <= view.columns <= width
        and (height - view.rows) % 2 == (width - view.columns) % 2 == 0
        and view.marks in (0, 1, view.tall)
    )
