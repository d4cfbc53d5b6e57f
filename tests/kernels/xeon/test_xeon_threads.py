"""The team of threads under load: more threads than cores, jobs far smaller than a wake-up."""

from __future__ import annotations

import threading
import time

import psutil
import torch

from headstock_xeon.device import XeonDevice
from headstock_xeon.kernels.layers import LayerKernels


def test_many_small_jobs_on_more_threads_than_cores(library) -> None:
    device = XeonDevice("test", library, num_threads=7)
    layers = LayerKernels(device)
    gate_up_TG = torch.randn(64, 32)
    wanted = layers.silu_and_mul(gate_up_TG)
    for _ in range(2000):
        assert torch.equal(layers.silu_and_mul(gate_up_TG), wanted)
    device.close()


def test_jobs_with_pauses_wake_sleeping_threads(library) -> None:
    device = XeonDevice("test", library, num_threads=3)
    layers, gate_up_TG = LayerKernels(device), torch.randn(64, 32)
    wanted = layers.silu_and_mul(gate_up_TG)
    for _ in range(50):
        time.sleep(0.002)
        assert torch.equal(layers.silu_and_mul(gate_up_TG), wanted)
    device.close()


def test_an_idle_device_uses_no_processor_time(library) -> None:
    device = XeonDevice("test", library, num_threads=3)
    LayerKernels(device).silu_and_mul(torch.randn(64, 32))
    time.sleep(0.05)
    names = {t.id for t in psutil.Process().threads()}
    before = {t.id: t.user_time + t.system_time for t in psutil.Process().threads()}
    time.sleep(0.5)
    after = {t.id: t.user_time + t.system_time for t in psutil.Process().threads()}
    own = psutil.Process().pid
    spent = sum(after[i] - before[i] for i in names if i in after and i != own)
    device.close()
    assert spent < 0.1


def test_a_closed_device_has_no_threads_left(library) -> None:
    before = psutil.Process().num_threads()
    device = XeonDevice("test", library, num_threads=5)
    assert psutil.Process().num_threads() >= before + 4
    device.close()
    assert psutil.Process().num_threads() <= before


def test_other_python_threads_run_while_kernels_do(library) -> None:
    device = XeonDevice("test", library, num_threads=1)
    layers, x = LayerKernels(device), torch.randn(4096, 8192)
    counted = 0
    done = threading.Event()

    def count() -> None:
        nonlocal counted
        while not done.is_set():
            counted += 1
            time.sleep(0)

    thread = threading.Thread(target=count)
    thread.start()
    before = counted
    layers.silu_and_mul(x)
    assert counted > before
    done.set()
    thread.join()
    device.close()
