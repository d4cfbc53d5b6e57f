"""Kernels of products are chosen by how quick they are on the machine at hand."""

from __future__ import annotations

import re

import torch

import headstock_xeon
from headstock.ops.linear import LinearSpec
from headstock_xeon import doctor
from headstock_xeon.device import XeonDevice
from headstock_xeon.kernels.linear import FLOAT32, NativeLinear
from headstock_xeon.native import FEATURES, MEASURED, MODEL

MODELLED = FEATURES["avx2"] | FEATURES["avx512"] | MODEL
"""What makes a choice of two: AVX2, and a model of AVX-512 that is many times slower."""
SPEC = LinearSpec(in_features=64, out_features=32, dtype=torch.float32)


def chosen(library, features: int) -> tuple[str, str]:
    """Return the kernel of a weight in float32, and what is said of it."""
    device = XeonDevice("test", library, num_threads=1, features=features)
    kernel = NativeLinear(SPEC, device).kernel
    said = library.calls.hs_weight_choice(device.stream.engine, FLOAT32, 0).decode()
    device.close()
    return kernel, said


def test_what_is_slower_here_is_passed_over_though_it_is_first_in_the_list(library) -> None:
    kernel, said = chosen(library, MODELLED)
    assert (kernel, said) == ("f32-avx512-model", "f32-avx512-model: the first in the list")
    kernel, said = chosen(library, MODELLED | MEASURED)
    assert kernel == "f32-avx2"
    assert said.startswith("f32-avx2: microseconds with 1, 16 and 64 rows: ")
    times = re.findall(r"(f32-\S+) \d+, \d+, (\d+)", said)
    assert [name for name, _ in times] == ["f32-avx512-model", "f32-avx2"]
    assert int(times[0][1]) > int(times[1][1])


def test_a_kernel_without_another_is_not_measured(library) -> None:
    kernel, said = chosen(library, FEATURES["avx2"] | MEASURED)
    assert (kernel, said) == ("f32-avx2", "f32-avx2: there is no other for this processor")


def test_the_backend_measures(library) -> None:
    device = headstock_xeon.headstock_device(0, 1)
    assert isinstance(device, XeonDevice)
    assert device.features & MEASURED
    device.close()


def test_the_doctor_names_the_kernel_of_each_kind_of_weight_and_why(library) -> None:
    found = {finding.subject: finding.text for finding in doctor.examine()}
    for kind in doctor.PRODUCTS:
        text = found[f"products with {kind}"]
        assert re.match(r"(f32|bf16|int8|int4)\S*: (microseconds|there is no other)", text), text
