"""The store of features, which images a step encodes, and what the engine refuses."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import pytest

from headstock.cache import FeatureStore, chain_ids, root_id
from headstock.errors import RequestError
from headstock.requests import SamplingParams, TokenIds
from headstock.scheduler import Scheduler
from headstock.scheduler.encoder import contents_of
from headstock.scheduler.media_checks import check_media
from headstock.wire.codec import decode_to_engine, encode
from headstock.wire.media import MediaItem, MediaLimits
from headstock.wire.messages import Submit
from headstock.wire.steps import PageGroup, RunnerLimits, StepPlan, StepResult

LIMITS = MediaLimits(
    num_pages=5, page_tokens=4, num_axes=3, patches_per_token=4, patch_bytes=2, max_side=64
)


def item(begin: int, tokens: int, name: int = 0) -> MediaItem:
    pixels = bytes(tokens * 4 * 2)
    return MediaItem(
        begin, tokens, bytes([name] * 16), (1, 2, 2 * tokens), [1.0] * 3, [0.0] * 3, pixels
    )


def test_the_least_recently_used_gives_way_and_what_is_held_does_not() -> None:
    store = FeatureStore(5, 4)
    one, two = store.make(b"1", 8), store.make(b"2", 5)
    assert one is not None
    assert two is not None
    one.users = 1
    assert store.make(b"3", 12) is None
    three = store.make(b"3", 8)
    assert three is not None
    assert sorted(three.pages) == sorted(two.pages)
    assert store.find(b"2") is None
    assert store.find(b"1") is one
    store.check()
    store.drop(one)
    assert store.make(b"4", 16) is None
    store.let_go([one])
    assert store.make(b"4", 16) is not None


def test_pages_with_other_images_have_other_names() -> None:
    def names(*media: MediaItem) -> list[bytes]:
        return chain_ids(root_id(""), [9] * 16, 4, contents_of(media, 4))

    plain, one, other = names(), names(item(5, 6, 1)), names(item(5, 6, 2))
    assert plain[0] == one[0] == other[0]
    assert len({plain[1], one[1], other[1]}) == 3
    assert len({plain[3], one[3], other[3]}) == 3
    assert names(item(5, 2, 1), item(7, 4, 2))[2] != names(item(5, 2, 2), item(7, 4, 1))[2]


WRONG: dict[str, Callable[[MediaItem], MediaItem]] = {
    "a grid of nothing": lambda i: msgspec.structs.replace(i, grid=(0, 2, 2)),
    "a grid past the table": lambda i: msgspec.structs.replace(i, grid=(1, 2, 65)),
    "too few tokens": lambda i: msgspec.structs.replace(i, count=i.count - 1),
    "too few bytes": lambda i: msgspec.structs.replace(i, pixels=i.pixels[1:]),
    "too many bytes": lambda i: msgspec.structs.replace(i, pixels=i.pixels + b"x"),
    "no scale": lambda i: msgspec.structs.replace(i, scale=[]),
    "a short digest": lambda i: msgspec.structs.replace(i, digest=b"x"),
    "before the prompt": lambda i: msgspec.structs.replace(i, begin=-1),
    "past the prompt": lambda i: msgspec.structs.replace(i, begin=30),
    "more than the store": lambda i: item(0, 17),
}


@pytest.mark.parametrize("name", WRONG)
def test_images_that_could_harm_the_device_are_refused(name: str) -> None:
    check_media([item(2, 4)], LIMITS, 32, 64)
    with pytest.raises(RequestError, match="Image 0"):
        check_media([WRONG[name](item(2, 4))], LIMITS, 32, 64)


def test_images_that_overlap_and_models_of_text_are_refused() -> None:
    with pytest.raises(RequestError, match="Image 1"):
        check_media([item(2, 4), item(5, 4)], LIMITS, 32, 64)
    with pytest.raises(RequestError, match="takes text only"):
        check_media([item(2, 4)], None, 32, 64)


def test_an_image_larger_than_a_step_is_refused_where_it_must_be_whole() -> None:
    whole = msgspec.structs.replace(LIMITS, is_whole=True)
    check_media([item(2, 8)], whole, 32, 8)
    check_media([item(2, 8)], LIMITS, 32, 7)
    with pytest.raises(RequestError, match="chunked-prefill-size to 8"):
        check_media([item(2, 8)], whole, 32, 7)


def test_marks_after_rows_count_among_an_images_tokens() -> None:
    """2 x 16 patches are a row of 8 tokens, of which each is 2 x 2."""
    rows = msgspec.structs.replace(LIMITS, row_tokens=1)
    check_media([msgspec.structs.replace(item(2, 8), count=9)], rows, 32, 64)
    with pytest.raises(RequestError, match="8 tokens for 32 patches"):
        check_media([item(2, 8)], rows, 32, 64)


def test_frames_that_become_one_have_its_tokens_and_are_bounded() -> None:
    pooled = msgspec.structs.replace(LIMITS, pooled_frames=3)
    one = item(2, 4)
    three = msgspec.structs.replace(one, grid=(3, 2, 8), pixels=one.pixels * 3)
    check_media([one, msgspec.structs.replace(three, begin=6)], pooled, 32, 64)
    with pytest.raises(RequestError, match="4 tokens for 48 patches"):
        check_media([three], LIMITS, 32, 64)
    four = msgspec.structs.replace(one, grid=(4, 2, 8), pixels=one.pixels * 4)
    with pytest.raises(RequestError, match="4 frames; the encoder makes one of 3"):
        check_media([four], pooled, 32, 64)


def test_those_behind_an_image_without_room_wait_too() -> None:
    """Rows that decode leave too few tokens for it; nobody new may take their place."""
    limits = RunnerLimits(
        num_slots=4,
        max_step_tokens=9,
        max_length=64,
        vocab_size=10,
        depth=1,
        groups=[PageGroup("full", 4, 16, 60)],
        media=msgspec.structs.replace(LIMITS, is_whole=True),
    )
    scheduler = Scheduler(limits, prefix_cache=False)
    params = SamplingParams(max_new_tokens=6, ignore_eos=True)
    submits = [
        Submit(id="a", prompt_ids=TokenIds([1, 2]), params=params),
        Submit(id="image", prompt_ids=TokenIds([1] * 12), params=params, media=[item(0, 9)]),
        Submit(id="b", prompt_ids=TokenIds([1, 2]), params=params),
    ]
    seen, live = Seen({}, {}), dict[int, Submit]()
    for submit in submits:
        scheduler.submit(submit, 0.0)
    order: list[str] = []
    while (plan := scheduler.plan(0.0)) is not None:
        for request in scheduler._running:
            live[request.slot] = next(s for s in submits if s.id == request.id)
        scheduler.settle(run(scheduler, seen, live, plan), 0.0)
        order += [ended.id for ended in scheduler.take_ended()]
    assert order == ["a", "image", "b"]


def test_an_image_survives_the_wire() -> None:
    submit = Submit(
        id="a", prompt_ids=TokenIds([1] * 9), params=SamplingParams(), media=[item(2, 4, 7)]
    )
    assert decode_to_engine(encode([submit])) == [submit]


@dataclass
class Seen:
    """What a runner would know: whose features lie where."""

    owner: dict[int, bytes]
    shown: dict[tuple[int, int], list[int]]


def run(scheduler: Scheduler, seen: Seen, live: dict[int, Submit], plan: StepPlan) -> StepResult:
    """Check that every row's images are in the store, and settle the step."""
    for features in plan.features:
        seen.shown[features.slot, features.item] = features.pages
    for job in plan.encode:
        for page in job.pages:
            seen.owner[page] = job.pixels[:1]
    rows = plan.rows
    at = 0
    drawn: list[int] = []
    for slot, query, kv, source, yields in zip(
        rows.slots, rows.query_max, rows.kv_max, rows.source, rows.yields, strict=True
    ):
        drawn += [slot] * yields
        if source:
            continue
        at += query
        for number, media in enumerate(live[slot].media):
            if scheduler.limits.media.is_whole:
                assert not media.begin < kv < media.end, "a chunk ends within an image"
            if media.begin < kv and media.end > kv - query:
                for page in seen.shown[slot, number]:
                    assert seen.owner[page] == media.pixels[:1], "features of another image"
    count = len(drawn)
    return StepResult(plan.step, drawn, [1] * count, [3] * count, [0] * count)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("is_whole", [False, True])
def test_every_row_finds_the_features_of_its_own_images(seed: int, is_whole: bool) -> None:
    """Random requests in a store of four pages; all of them end, whatever waits for whom."""
    draw = random.Random(seed)
    num_pages = draw.choice([17, 40])
    windows = [PageGroup("window", 4, 16, num_pages, 8)] if draw.random() < 0.5 else []
    limits = RunnerLimits(
        num_slots=3,
        max_step_tokens=draw.choice([16, 17, 64] if is_whole else [3, 8, 64]),
        max_length=64,
        vocab_size=10,
        depth=1,
        groups=[PageGroup("full", 4, 16, num_pages), *windows],
        media=msgspec.structs.replace(LIMITS, is_whole=is_whole),
    )
    scheduler = Scheduler(limits, prefix_cache=draw.random() < 0.7)
    seen, live = Seen({}, {}), dict[int, Submit]()
    submits: dict[str, Submit] = {}
    for number in range(12):
        media: list[MediaItem] = []
        at = draw.randrange(3)
        for _ in range(draw.randrange(4)):
            tokens, name = draw.choice([1, 4, 9, 16]), draw.randrange(5)
            made = item(at, tokens, 16 * name + tokens)
            media.append(msgspec.structs.replace(made, pixels=made.digest[:1] * len(made.pixels)))
            at += tokens + draw.randrange(3)
        prompt = [1] * min(60, at + draw.randrange(1, 4))
        media = [each for each in media if each.end <= len(prompt)]
        params = SamplingParams(max_new_tokens=draw.randrange(1, 4), ignore_eos=True)
        submits[str(number)] = Submit(
            id=str(number), prompt_ids=TokenIds(prompt), params=params, media=media
        )
        scheduler.submit(submits[str(number)], 0.0)
    for _ in range(3000):
        plan = scheduler.plan(0.0)
        if plan is None:
            assert not scheduler.has_work, "requests wait for ever"
            break
        for request in scheduler._running:
            live[request.slot] = submits[request.id]
        scheduler.settle(run(scheduler, seen, live, plan), 0.0)
        scheduler.check()
    ended = scheduler.take_ended()
    assert len(ended) == 12
    assert {end.reason.kind for end in ended} == {"length"}, ended
    assert not scheduler.encoder._held
