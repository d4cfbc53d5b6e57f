"""What has to hold of a model class: each claim computes, compares, and raises where it differs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from headstock.errors import UnsupportedError
from headstock.graph.build import build_model
from headstock.graph.loader import load_random
from headstock.testing.compare import disagreement
from headstock.testing.oracle.case import Saved, prompt
from headstock.testing.oracle.ranks import ThreadGroup, on_ranks
from headstock.testing.oracle.sequences import Sequences, context
from headstock.testing.oracle.watch import Watch, WatchedResolver

RELATIVE = 1e-4
"""How far logits may be off, as a share of the value, and of the largest."""
CHUNK = 16


def assert_close(got: Tensor, want: Tensor) -> None:
    """Refuse logits that are not those of the oracle.

    Raises:
        AssertionError: Saying where they differ and by how much.
    """
    assert got.dtype == torch.float32, f"logits are {got.dtype}, not float32"
    trouble = disagreement([got], [want], RELATIVE, RELATIVE * want.abs().max().item())
    assert trouble is None, trouble


def prefill(saved: Saved) -> None:
    """A prompt in one step has the oracle's logits."""
    ids = prompt(23)
    assert_close(saved.load().step(a=ids), saved.logits(ids))


def decoding(saved: Saved) -> None:
    """Token by token, behind a prompt, has the logits of the whole."""
    ids = prompt(14)
    sequences = saved.load()
    got = [sequences.step(a=ids[:9]), *(sequences.step(a=[token]) for token in ids[9:])]
    assert_close(torch.cat(got), saved.logits(ids))


def chunks(saved: Saved) -> None:
    """Chunk after chunk has the logits of the whole."""
    ids = prompt(41)
    sequences = saved.load()
    got = [sequences.step(a=ids[begin : begin + CHUNK]) for begin in range(0, len(ids), CHUNK)]
    assert_close(torch.cat(got), saved.logits(ids))


def mixed_batch(saved: Saved) -> None:
    """A row that decodes, one that prefills and one of a single token have each its own logits."""
    one, two, three = prompt(17, 1), prompt(6, 2), prompt(1, 3)
    sequences = saved.load()
    sequences.step(a=one[:16])
    got = sequences.step(a=one[16:], b=two, c=three)
    want = [saved.logits(one)[16:], saved.logits(two), saved.logits(three)]
    assert_close(got, torch.cat(want))


def cache_hit(saved: Saved) -> None:
    """A prompt whose first pages another one left behind has the logits of a cold run."""
    ids = prompt(20)
    sequences = saved.load()
    sequences.step(old=ids[:12])
    sequences.share("old", "new", 12)
    sequences.step(old=prompt(5, 9))
    assert_close(sequences.step(new=ids[12:]), saved.logits(ids)[12:])


def retraction(saved: Saved) -> None:
    """A row that lost its pages, and computes its tokens again in others' pages, goes on alike."""
    ids, other = prompt(19, 4), prompt(11, 5)
    sequences = saved.load()
    sequences.step(a=ids[:10], b=other[:7])
    sequences.step(a=ids[10:12], b=other[7:])
    sequences.drop("b")
    sequences.drop("a")
    sequences.step(c=prompt(6, 6))
    got = [sequences.step(a=ids[:12]), sequences.step(a=ids[12:])]
    assert_close(torch.cat(got), saved.logits(ids))


def last_tokens(saved: Saved) -> None:
    """A step that wants each row's last token alone has the logits of those."""
    one, two = prompt(9, 1), prompt(6, 2)
    got = saved.load().step(wants_last=True, a=one, b=two)
    assert_close(got, torch.stack([saved.logits(one)[-1], saved.logits(two)[-1]]))


def ranks(saved: Saved) -> None:
    """Ranks that share every layer have the logits of one."""
    ids = prompt(13)
    one_at_a_time = threading.Lock()  # classes of other libraries are not built by several threads

    def run(group: ThreadGroup) -> Tensor:
        with torch.no_grad():
            with one_at_a_time:
                sequences = saved.load(context(tp=group, max_length=saved.case.max_length))
            return sequences.step(a=ids)

    want = saved.logits(ids)
    for got in on_ranks(saved.case.num_ranks, run):
        assert_close(got, want)


def ops_and_views(saved: Saved) -> None:
    """The forward pass calls ops and views alone, in float32 and in bfloat16."""
    if not saved.case.touches_ops_only:
        return
    for dtype in (torch.float32, torch.bfloat16):
        watch = Watch()
        ops, length = WatchedResolver(watch), saved.case.max_length
        sequences = saved.load(context(ops=ops, dtype=dtype, max_length=length))
        batch = sequences.batch({"a": 3, "b": 1})
        ids_T = torch.tensor([4, 5, 6, 7])
        with watch, torch.no_grad():
            logits = sequences.model.logits(sequences.model(ids_T, batch))
        assert watch.num_calls > 0
        assert logits.isfinite().all(), f"logits in {dtype} are not finite"


def random_weights(saved: Saved) -> None:
    """Random weights, as ``--load-format dummy`` makes them, fill every layer."""
    ctx = context(max_length=saved.case.max_length)
    with torch.no_grad():
        model = build_model(saved.case.model, ctx, saved.config())
        load_random(model, ctx)
        assert Sequences(model, ctx).step(a=prompt(5)).isfinite().all()


def refusals(saved: Saved) -> None:
    """What is not computed is refused by key and value."""
    for key, value in saved.case.refused.items():
        refusal = _refusal(saved, key, value)
        assert refusal, f"{key} = {value!r} is not refused"
        assert key in refusal, f"{key} = {value!r} is refused as: {refusal}"


def _refusal(saved: Saved, key: str, value: object) -> str:
    """Return why the configuration with another value is refused; "" where it is not."""
    ctx = context(max_length=saved.case.max_length)
    try:
        build_model(saved.case.model, ctx, saved.config() | {key: value})
    except UnsupportedError as error:
        return str(error)
    return ""


CLAIMS: Mapping[str, Callable[[Saved], None]] = {
    claim.__name__: claim
    for claim in (
        prefill,
        decoding,
        chunks,
        mixed_batch,
        cache_hit,
        retraction,
        last_tokens,
        ranks,
        ops_and_views,
        random_weights,
        refusals,
    )
}
"""Every claim by name: of a case's plain configuration all are tried, of its variants ``prefill``,
``decoding`` and ``ranks``."""
OF_VARIANTS = ("prefill", "decoding", "ranks")


def trials(case_variants: Mapping[str, object]) -> list[tuple[str, str]]:
    """Return the (variant, claim) pairs that are tried of configurations with these names."""
    plain, *others = case_variants
    pairs = [(plain, claim) for claim in CLAIMS]
    return pairs + [(variant, claim) for variant in others for claim in OF_VARIANTS]
