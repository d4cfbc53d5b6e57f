"""Attention by optional libraries, with stand-ins for them that compute with PyTorch.

What the stand-ins are given is checked against what the libraries' sources ask for; the libraries
themselves run in tests/hardware/cuda.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
from triton_here import Here

from headstock.errors import UnsupportedError
from headstock.ops.attention import attention
from headstock.ops.base import OpRegistry, Resolver
from headstock.ops.cases.attention import (
    attend,
    dense_attention,
    filled_pages,
    make_inputs,
    plain_spec,
)
from headstock.ops.cases.batches import make_step
from headstock_cuda import headstock_register_ops
from headstock_cuda.device import _capabilities
from headstock_cuda.flash_attention import MOST_ROWS, FlashRows, build_flash_attention
from headstock_cuda.flashinfer import XqaRows
from headstock_cuda.optional import FLASH_ATTENTION, FLASHINFER, findings
from headstock_triton.attention.provider import PagedAttention

PAGE = 16
SPEC = plain_spec(torch.float32, PAGE)
LONG = [(200, 220), (1, 40), (70, 70)]
"""Rows that fill a tile of 128 / 2 queries each, on average."""


class FakeFlash:
    """``flash_attn_varlen_func`` as this package calls it; rows that it leaves out become NaN."""

    def __init__(self) -> None:
        self.used: list[list[int]] = []

    def __call__(
        self, q, k, v, *, cu_seqlens_q, seqused_q, seqused_k, page_table, softmax_scale, causal
    ):
        num_rows = len(cu_seqlens_q) - 1
        assert causal
        assert q.is_contiguous()
        for pages in (k, v):
            assert pages.shape[1:] == (PAGE, SPEC.num_kv_heads, SPEC.head_dim)
            assert pages.stride(-1) == 1
            assert all(stride % 8 == 0 for stride in pages.stride()[:-1])
        assert page_table.shape[0] == num_rows
        assert page_table.stride(-1) == 1
        assert seqused_q.shape == seqused_k.shape == (num_rows,)
        for lengths in (cu_seqlens_q, seqused_q, seqused_k, page_table):
            assert lengths.dtype == torch.int32
        self.used.append(seqused_q.tolist())
        out = torch.full_like(q, torch.nan)
        for row, used in enumerate(seqused_q.tolist()):
            length, begin = int(seqused_k[row]), int(cu_seqlens_q[row])
            keys, values = (gathered(pages, page_table[row], length) for pages in (k, v))
            some = slice(begin, begin + used)
            out[some] = causal_attention(q[some], keys, values, softmax_scale)
        return out, None


class FakeXqa:
    """``xqa_batch_decode_with_kv_cache`` as this package calls it."""

    def __init__(self) -> None:
        self.num_calls = 0

    def __call__(
        self, query, kv_cache, workspace_buffer, block_tables, seq_lens, max_seq_len, *,
        bmm1_scale, kv_layout,
    ):  # fmt: skip
        self.num_calls += 1
        assert kv_layout == "HND"
        assert kv_cache.shape[1:] == (2, SPEC.num_kv_heads, PAGE, SPEC.head_dim)
        assert block_tables.is_contiguous()
        assert seq_lens.dtype == torch.uint32
        assert workspace_buffer.dtype == torch.uint8
        assert not workspace_buffer.any()
        assert max_seq_len == SPEC.max_length
        keys, values = (pages.transpose(1, 2) for pages in kv_cache.unbind(1))
        out = torch.empty_like(query)
        for row, length in enumerate(seq_lens.view(torch.int32).tolist()):
            k, v = (gathered(pages, block_tables[row], length) for pages in (keys, values))
            out[row : row + 1] = causal_attention(query[row : row + 1], k, v, bmm1_scale)
        return out


def gathered(pages, table, length):
    return pages[table.long()].flatten(0, 1)[:length]


def causal_attention(q, k, v, scale):
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    scores = torch.einsum("qhd,lhd->hql", q, k) * scale
    is_seen = torch.ones(len(k), len(k), device=q.device).tril()[len(k) - len(q) :]
    return torch.einsum("hql,lhd->qhd", scores.masked_fill(is_seen == 0, -torch.inf).softmax(-1), v)


def with_flash():
    fake = FakeFlash()
    return fake, PagedAttention(SPEC, Here(), queries=FlashRows(SPEC, Here(), fake))


def with_xqa():
    fake = FakeXqa()
    return fake, PagedAttention(SPEC, Here(), decodes=XqaRows(SPEC, Here(), fake))


def outcome(provider, rows, **options):
    step = make_step(rows, PAGE, Here.torch_device, **options)
    inputs = make_inputs(SPEC, step, Here.torch_device, shared=options.get("shared", ()))
    kv = filled_pages(provider, step, inputs, SPEC.max_tokens)
    got = attend(provider, kv, step, inputs)
    assert_right(got, rows, inputs)
    return kv, step, inputs


def assert_right(got, rows, inputs):
    wanted = dense_attention(SPEC, rows, inputs)
    torch.testing.assert_close(got[: len(wanted)].double(), wanted, rtol=1e-4, atol=1e-5)


def test_flash_attention_takes_rows_with_several_queries_and_leaves_the_others():
    fake, provider = with_flash()
    outcome(provider, LONG, num_padding_rows=1)
    assert fake.used[-1] == [200, 0, 70, 0]


def test_layers_of_a_step_share_what_flash_attention_was_told():
    fake, provider = with_flash()
    kv, step, inputs = outcome(provider, LONG)
    other = replace(inputs, q_THD=inputs.q_THD.flip(1))
    assert_right(attend(provider, kv.clone(), step, other, is_planned=True), LONG, other)
    assert fake.used[-2:] == [[200, 0, 70]] * 2


def test_flash_attention_is_compiled_once_and_not_when_it_is_built():
    fake, provider = with_flash()
    assert not fake.used
    step = make_step([(1, 3)], PAGE, Here.torch_device)
    provider.plan(step.batch)
    provider.plan(step.batch)
    assert fake.used == [[2, 2]]


@pytest.mark.parametrize(
    "changes",
    [{"host_rows": []}, {"num_rows": MOST_ROWS + 1}, {"num_tokens": 2 * 64, "num_rows": 3}],
    ids=["captured", "too many rows", "few queries a row"],
)
def test_flash_attention_leaves_such_steps_to_triton(changes):
    rows = FlashRows(SPEC, Here(), FakeFlash())
    batch = make_step(LONG, PAGE, Here.torch_device).batch
    assert rows.plan(batch)
    assert not rows.plan(replace(batch, **changes))


def test_xqa_takes_decode_steps_and_bakes_no_length_into_graphs():
    fake, provider = with_xqa()
    outcome(provider, [(1, 5), (1, 33)], num_padding_rows=2)
    calls, key = fake.num_calls, provider.graph_key
    outcome(provider, [(1, 64), (1, 200)], num_padding_rows=2)
    assert fake.num_calls == calls + 1
    assert provider.graph_key == key


def test_xqa_leaves_shared_prefixes_and_longer_rows_to_triton():
    fake, provider = with_xqa()
    outcome(provider, [(1, 5)])
    calls = fake.num_calls
    outcome(provider, [(1, 40), (1, 37)], shared=[(0, 2, 32)])
    outcome(provider, [(3, 8), (1, 9)])
    assert fake.num_calls == calls


# --- which provider is chosen ---------------------------------------------------------------------

BF16 = replace(plain_spec(torch.bfloat16, 64), num_heads=32, num_kv_heads=8, head_dim=128).as_spec()


class Hopper(Here):
    capabilities = frozenset({"sm_80", "sm_90", "sm_90a"})


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return a function that writes an importable package's file."""
    monkeypatch.syspath_prepend(tmp_path)
    for name in [n for n in sys.modules if n.split(".")[0] in ("flash_attn", "flashinfer")]:
        monkeypatch.delitem(sys.modules, name)

    def write(path: str, source: str = "") -> None:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)

    yield write
    for name in [n for n in sys.modules if n.split(".")[0] in ("flash_attn", "flashinfer")]:
        del sys.modules[name]


def chosen(spec, device=Hopper, **forced):
    registry = OpRegistry()
    headstock_register_ops(registry, device())
    resolver = Resolver(registry, device(), forced)
    resolver.resolve(attention, spec)
    return resolver.resolutions[-1]


def test_nothing_is_offered_that_is_not_installed():
    assert not FLASH_ATTENTION.is_installed
    assert not FLASHINFER.is_installed
    assert chosen(BF16).provider == "triton"
    assert not chosen(BF16).passed_over
    assert all(f.is_ok and "pip install 'headstock[cuda-" in f.text for f in findings())


def test_flash_attention_computes_only_where_it_is_forced(install):
    install("flash_attn/cute/__init__.py", "raise AssertionError('imported to look for it')")
    assert chosen(BF16).provider == "triton"
    assert chosen(BF16, attention="flash-attention").provider == "flash-attention"


def test_what_flash_attention_does_not_take_is_refused_with_the_reason(install):
    install("flash_attn/cute/__init__.py", "raise AssertionError('imported to look for it')")
    large_pages = replace(BF16, sizes={**BF16.sizes, "page_size": 128})
    with pytest.raises(UnsupportedError, match=r"page_size 128 not in \[16, 32, 64\]"):
        chosen(large_pages, attention="flash-attention")
    with pytest.raises(UnsupportedError, match="device lacks sm_90a"):
        chosen(BF16, Here, attention="flash-attention")


def test_flash_attention_2_alone_is_not_flash_attention_4(install):
    install("flash_attn/__init__.py")
    assert not FLASH_ATTENTION.is_installed


def test_flashinfer_computes_only_where_it_is_forced(install):
    install("flashinfer/__init__.py")
    install("flashinfer/decode.py")
    assert chosen(BF16).provider == "triton"
    assert chosen(BF16, attention="flashinfer").provider == "flashinfer"


def test_a_broken_installation_says_what_to_do(install):
    install("flash_attn/cute/__init__.py", "import no_such_module_anywhere")
    with pytest.raises(UnsupportedError, match="no_such_module_anywhere"):
        build_flash_attention(SPEC, Here())


def test_only_hopper_has_hoppers_own_capability():
    assert "sm_90a" in _capabilities(90)
    assert "sm_90a" not in _capabilities(100) | _capabilities(89)
    assert "sm_90" in _capabilities(100)
