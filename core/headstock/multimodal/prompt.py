"""Where images and videos stand in a tokenised prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from headstock.errors import CheckpointError, RequestError
from headstock.multimodal.decoder import Decoded, Piece
from headstock.multimodal.family import Family
from headstock.wire.media import MediaItem

Encode = Callable[[str], list[int]]
"""Turns text into token ids."""


def place_media(
    token_ids: Sequence[int], media: Sequence[Decoded], family: Family, encode: Encode
) -> tuple[list[int], list[MediaItem]]:
    """Put as many tokens as each image and each video has in the place of the one for it.

    Args:
        token_ids: With one placeholder for each.
        media: Images in their order, and videos in theirs.
        family: Of the model.
        encode: For the times that stand before the moments of a video.

    Returns:
        The prompt's tokens, and its images and moments.

    Raises:
        RequestError: There are not as many places as images, or videos.
    """
    _check_places(token_ids, media, family)
    expanded: list[int] = []
    items: list[MediaItem] = []
    waiting = {family.token_id: iter([each for each in media if not each.times])}
    if family.video is not None:
        waiting[family.video.token_id] = iter([each for each in media if each.times])
    for token in token_ids:
        if token in waiting:
            _expand(next(waiting[token]), family, encode, expanded, items)
        else:
            expanded.append(token)
    return expanded, items


def _check_places(token_ids: Sequence[int], media: Sequence[Decoded], family: Family) -> None:
    """Refuse a prompt that has not as many places as there are images, and videos."""
    token_ids = list(token_ids)
    videos = 0 if family.video is None else token_ids.count(family.video.token_id)
    places = _counted(token_ids.count(family.token_id), videos)
    num_videos = sum(1 for each in media if each.times)
    sent = _counted(len(media) - num_videos, num_videos)
    if places != sent:
        raise RequestError(
            f"The prompt has places for {places}, and {sent} were sent.",
            remedy="Send one for each place; text must not hold their placeholders.",
            code="images_do_not_match",
        )


def _counted(images: int, videos: int) -> str:
    return f"{images} images" + (f" and {videos} videos" if videos else "")


def _expand(
    media: Decoded,
    family: Family,
    encode: Encode,
    expanded: list[int],
    items: list[MediaItem],
) -> None:
    """Add the tokens of an image or of all moments of a video, and the items that they are."""
    video = family.video if media.times else None
    for number, piece in enumerate(media.pieces):
        marks = None if video is None else video.marks
        if marks is not None:
            # As the model was trained: each moment between marks of its own, after its time.
            expanded += [*encode(f"<{media.times[number]:.1f} seconds>"), marks[0]]
        if piece.lead:
            expanded += encode(piece.lead)
        source = family if video is None else video
        feature_id = source.token_id if source.feature_id is None else source.feature_id
        if family.row_marks is None or video is not None:
            is_pooled = video is not None and video.pooled > 0
            tokens = [feature_id] * _count(piece, family, is_pooled=is_pooled)
        else:
            tokens = _in_rows(family, piece.grid, encode)
        item = MediaItem(
            begin=len(expanded),
            count=len(tokens),
            digest=piece.digest,
            grid=piece.grid,
            scale=list(source.scale),
            shift=list(source.shift),
            pixels=piece.pixels,
            view=piece.view,
            time=piece.time,
            follows=video is not None and video.is_plain and number > 0,
        )
        items.append(item)
        expanded += tokens
        if piece.trail:
            expanded += encode(piece.trail)
        if marks is not None:
            expanded.append(marks[1])


def _count(piece: Piece, family: Family, *, is_pooled: bool) -> int:
    """Return the tokens of a piece without marks after its rows; pooled frames have one's."""
    if piece.view is not None:
        return piece.view.num_tokens
    frames, height, width = piece.grid
    return (1 if is_pooled else frames) * height * width // family.merge**2


def _in_rows(family: Family, grid: tuple[int, int, int], encode: Encode) -> list[int]:
    """Return the tokens of an image, with a mark after each row and another after the last."""
    frames, height, width = grid
    row_mark, end_mark = row_mark_ids(family, encode)
    row = [*[family.token_id] * (width // family.merge), row_mark]
    tokens = row * (frames * height // family.merge)
    return [*tokens[:-1], end_mark]


def row_mark_ids(family: Family, encode: Encode) -> list[int]:
    """Return the ids of the marks after rows; []: the family has none.

    Raises:
        CheckpointError: The tokenizer has no token for one.
    """
    ids: list[int] = []
    for mark in family.row_marks or ():
        found = encode(mark)
        if len(found) != 1:
            raise CheckpointError(
                f"The tokenizer makes {len(found)} tokens of {mark!r}, which stands after a row of"
                " an image.",
                remedy="Compare tokenizer.json and processor_config.json with the originals.",
            )
        ids += found
    return ids
