"""The device: captured steps with lengths of their own, sizes, and what it refuses."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest
import torch
from headstock_npu_on_cpu.device import NpuOnCpu

from headstock.errors import ConfigError, UnsupportedError
from headstock.ops.attention import AttentionSpec
from headstock.ops.cases.attention import attend, dense_attention, filled_pages, make_inputs
from headstock.ops.cases.attention import plain_spec as plain
from headstock.ops.cases.batches import make_step
from headstock.plugins.device import GraphKey
from headstock_ascend.attention import PagedAttention, pieces_of
from headstock_ascend.open import open_device
from headstock_ascend.policy import ROW_BUCKETS, DecodePolicy
from headstock_ascend.ragged import RaggedAttention

KEY = GraphKey("uniform", 2, 2, query=1)


@pytest.fixture(scope="module")
def device() -> NpuOnCpu:
    return NpuOnCpu()


PLAIN = plain(torch.float32, 128)
WINDOWED = replace(PLAIN, features=frozenset({"sliding_window", "sinks"}), window=40)


class TestCapturedSteps:
    @pytest.mark.parametrize("spec", [PLAIN, WINDOWED], ids=["plain", "windows and sinks"])
    def test_a_replay_has_the_lengths_that_were_planned_last(
        self, device: NpuOnCpu, spec: AttentionSpec
    ) -> None:
        rows = [(1, 300), (1, 7)]
        step = make_step(rows, 128, device.torch_device)
        inputs = make_inputs(spec, step, device.torch_device)
        provider = (RaggedAttention if spec.window else PagedAttention)(spec, device)
        kv = filled_pages(provider, step, inputs, spec.max_tokens)
        attend(provider, kv, step, inputs)
        out_THD = torch.zeros(2, 4, 64)
        step.batch.host_rows = [(1, 300), (1, 300)]  # as steps are captured: all at their bound
        provider.plan(step.batch)

        def run() -> None:
            out_THD.copy_(provider.run(inputs.q_THD, kv, step.batch, sinks_H=inputs.sinks_H))

        graph = device.capture(KEY, run)
        step.batch.host_rows = rows
        provider.plan(step.batch)
        graph.replay()
        wanted = dense_attention(spec, rows, inputs)
        assert torch.allclose(out_THD.double(), wanted, atol=1e-5)

    def test_two_providers_keep_their_own_lengths(self, device: NpuOnCpu) -> None:
        """Calls are updated in the order in which they were captured."""
        noted = [[3], [4]]

        def step() -> None:
            for lengths in noted:
                device.note_updates(lambda lengths=lengths: {"actual_seq_kvlen": lengths})

        graph = device.capture(KEY, step)
        given: list[object] = []
        graph._graph = SimpleNamespace(
            update=lambda cpu_update_input: given.extend(cpu_update_input), replay=lambda: None
        )
        graph.replay()
        assert given == [{"actual_seq_kvlen": [3]}, {"actual_seq_kvlen": [4]}]

    def test_nothing_is_noted_when_nothing_is_captured(self, device: NpuOnCpu) -> None:
        device.note_updates(lambda: {"actual_seq_kvlen": [1]})
        assert device._noted is None


class TestPieces:
    def test_neighbours_with_equally_many_queries_are_one_call(self) -> None:
        pieces = list(pieces_of([(1, 5), (1, 9), (7, 7), (3, 8), (3, 4), (1, 2)]))
        found = [(p.rows.start, p.rows.stop, p.tokens.start, p.tokens.stop) for p in pieces]
        assert found == [(0, 2, 0, 2), (2, 3, 2, 9), (3, 5, 9, 15), (5, 6, 15, 16)]
        assert [p.lengths for p in pieces] == [[5, 9], [7], [8, 4], [2]]

    def test_a_batch_without_lengths_is_a_mistake_of_ours(self, device: NpuOnCpu) -> None:
        step = make_step([(1, 5)], 128, device.torch_device)
        step.batch.host_rows = []
        with pytest.raises(AssertionError, match="takes lengths from the host"):
            PagedAttention(plain(torch.float32, 128), device).plan(step.batch)


def test_decode_steps_alone_are_captured() -> None:
    policy = DecodePolicy()
    assert policy.bucket(5, 5, True) == (8, 8)
    assert policy.bucket(5, 5, False) is None
    assert policy.bucket(40, 5, True) is None
    assert policy.bucket(ROW_BUCKETS[-1] + 1, ROW_BUCKETS[-1] + 1, True) is None
    assert policy.warm_up(20, 500) == [(n, n, True) for n in (1, 2, 4, 8, 16)]


class TestOpening:
    @pytest.fixture
    def seen(self, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
        seen = SimpleNamespace(is_available=lambda: True, device_count=lambda: 2)
        monkeypatch.setitem(sys.modules, "torch_npu", ModuleType("torch_npu"))
        monkeypatch.setattr(torch, "npu", seen, raising=False)
        return seen

    def test_it_needs_torch_npu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "torch_npu", None)
        with pytest.raises(ConfigError, match="torch-npu cannot be imported") as caught:
            open_device(0)
        assert "set_env.sh" in caught.value.remedy

    def test_it_needs_its_npu(self, seen: SimpleNamespace) -> None:
        with pytest.raises(ConfigError, match="device_index is 2; torch-npu sees 2 NPUs"):
            open_device(2)
        seen.is_available = lambda: False
        with pytest.raises(UnsupportedError, match="sees no NPU"):
            open_device(0)
