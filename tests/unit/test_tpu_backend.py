"""The tpu backend without a TPU: options, what it refuses, padding, and its second runtime."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from headstock.errors import ConfigError, UnsupportedError
from headstock_tpu.options import TpuOptions, read_options
from headstock_tpu.policy import RAGGED, ROWS, StaticPolicy


def test_options_are_read() -> None:
    assert read_options({}) == TpuOptions(runtime="auto", pjrt="tpu", mesh=1)
    given = {"runtime": "xla", "pjrt": "cpu", "mesh": "4"}
    assert read_options(given) == TpuOptions(runtime="xla", pjrt="cpu", mesh=4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"pjrt": "gpu"}, "backend_option pjrt is 'gpu'"),
        ({"mesh": "0"}, "backend_option mesh is '0'"),
        ({"mesh": "two"}, "backend_option mesh is 'two'"),
        ({"meshes": "2"}, "names 'meshes'.*Did you mean 'mesh'"),
        ({"runtime": "torchtpu", "pjrt": "cpu"}, "runtime is 'torchtpu'"),
        ({"runtime": "torchtpu", "mesh": "2"}, "runtime is 'torchtpu'"),
    ],
)
def test_options_that_cannot_be_are_refused(given: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_options(given)


def test_without_a_chip_it_says_how_to_try_it_out(tmp_path: Path) -> None:
    from headstock_tpu.open import open_device

    with pytest.raises(ConfigError, match="no TPU on the PCI bus") as caught:
        open_device(0, {}, tmp_path)
    assert "--backend-option pjrt=cpu" in caught.value.remedy


def test_every_step_has_a_bucket_that_is_compiled_in_advance() -> None:
    policy = StaticPolicy()
    met = set(policy.warm_up(*RAGGED[-1]))
    assert {(rows, rows, True) for rows in ROWS} <= met
    for tokens in (1, 63, 64, 65, 700, 16384):
        for rows in (1, 31, 32, 200, 576):
            bucket = policy.bucket(tokens, rows, is_uniform=False)
            assert bucket is not None
            assert bucket[0] >= tokens
            assert bucket[0] > bucket[1] >= rows
            assert (*bucket, False) in met
    assert policy.bucket(RAGGED[-1][0] + 1, 1, is_uniform=False) is None
    assert policy.bucket(ROWS[-1] + 1, ROWS[-1] + 1, is_uniform=True) is None


class TestTorchTpu:
    """The runtime torch-tpu against a stub: it was run on no TPU."""

    @pytest.fixture
    def torch_tpu(self, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
        import torch

        def refuse() -> None:
            raise RuntimeError("internal to TorchTPU and can only be called by PyTorch")

        seen = SimpleNamespace(is_available=True)
        monkeypatch.setitem(sys.modules, "torch_tpu", ModuleType("torch_tpu"))
        internal = SimpleNamespace(is_available=refuse, device_count=refuse)
        monkeypatch.setattr(torch, "tpu", internal, raising=False)

        def current_accelerator(*, check_available: bool = False) -> SimpleNamespace | None:
            return SimpleNamespace(type="tpu") if seen.is_available or not check_available else None

        monkeypatch.setattr(torch.accelerator, "current_accelerator", current_accelerator)
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: 4)
        monkeypatch.setattr(torch, "device", lambda kind, index=0: f"{kind}:{index}")
        return seen

    def test_it_needs_its_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from headstock_tpu.torchtpu import TorchTpuRuntime

        monkeypatch.setitem(sys.modules, "torch_tpu", None)
        with pytest.raises(ConfigError, match="torch-tpu cannot be imported"):
            TorchTpuRuntime(0)

    def test_it_needs_its_chip(self, torch_tpu: SimpleNamespace) -> None:
        from headstock_tpu.torchtpu import TorchTpuRuntime

        with pytest.raises(ConfigError, match="device_index is 4; torch-tpu sees 4 chips"):
            TorchTpuRuntime(4)
        torch_tpu.is_available = False
        with pytest.raises(UnsupportedError, match="sees no TPU"):
            TorchTpuRuntime(0)

    def test_it_compiles_each_step_once(
        self, torch_tpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import torch

        from headstock_tpu.torchtpu import TorchTpuRuntime

        asked, ran = [], []

        def compile_step(step, *, backend, dynamic):
            asked.append((backend, dynamic))
            return step

        monkeypatch.setattr(torch, "compile", compile_step)
        runtime = TorchTpuRuntime(1)
        assert runtime.torch_device == "tpu:1"
        program = runtime.capture(lambda: ran.append(1))
        program.replay()
        assert (asked, ran) == ([("tpu", False)], [1, 1])
        assert runtime.num_compiled() == 1
