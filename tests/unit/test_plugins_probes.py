"""What the in-tree backends' probes say of machines that they are not on."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from headstock.plugins.installed import TorchBuild, parse_torch_version
from headstock.plugins.probe import Status
from headstock_ascend.probe import judge as judge_ascend
from headstock_cuda.nvml import Driver, Gpu, NvmlError, read_driver
from headstock_cuda.probe import judge, visible, without_library
from headstock_rocm.probe import TOPOLOGY, gfx_name
from headstock_rocm.probe import judge as judge_rocm
from headstock_tpu.probe import probe as probe_tpu
from headstock_xeon.probe import probe as probe_xeon

H100 = Gpu(index=0, uuid="GPU-aa", name="H100", capability=(9, 0), memory_bytes=80 << 30)
OTHER = Gpu(index=1, uuid="GPU-bb", name="H100", capability=(9, 0), memory_bytes=80 << 30)
OLD = Gpu(index=0, uuid="GPU-cc", name="P100", capability=(6, 0), memory_bytes=16 << 30)
DRIVER = Driver("580.82", (13, 0), (H100, OTHER))
TORCH = TorchBuild("2.13.0+cu130", {"cuda": "13.0"})
PLAIN_TORCH = TorchBuild("2.13.0+cpu")


def write(root: Path, path: str, text: str = "") -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_probing_loads_neither_torch_nor_a_vendor_library() -> None:
    code = (
        "import sys\n"
        "from headstock.plugins.loader import State, discover\n"
        "plugins = discover()\n"
        "for record in plugins.backends:\n"
        "    record.state is State.LOADED and plugins.probe(record)\n"
        "bad = {'torch', 'torch_npu', 'torch_xla', 'jax', 'triton', 'numpy'}\n"
        "print(sorted(bad & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


def test_torch_is_read_without_importing_it() -> None:
    source = "from typing import Optional\n__version__ = '2.13.0+cu130'\ndebug = False\n"
    source += "cuda: Optional[str] = '13.0'\ngit_version = 'abc'\nhip: Optional[str] = None\n"
    build = parse_torch_version(source)
    assert build == TorchBuild("2.13.0+cu130", {"cuda": "13.0"})
    assert build.release == (2, 13)


def store(**fields: Any) -> Any:
    """Return a function that writes ``fields`` into what its last arguments point to."""

    def write(*arguments: Any) -> None:
        pointers = arguments[-len(fields) :]
        for pointer, (name, value) in zip(pointers, fields.items(), strict=True):
            setattr(pointer._obj, name.rstrip("_"), value)

    return write


def store_text(text: bytes) -> Any:
    def write(*arguments: Any) -> None:
        arguments[-2].value = text

    return write


ANSWERS = {
    "nvmlDeviceGetCount_v2": store(value=2),
    "nvmlSystemGetCudaDriverVersion_v2": store(value=13020),
    "nvmlDeviceGetCudaComputeCapability": store(value=9, value_=0),
    "nvmlDeviceGetMemoryInfo": store(total=80 << 30),
    "nvmlDeviceGetName": store_text(b"H100"),
    "nvmlDeviceGetUUID": store_text(b"GPU-aa"),
    "nvmlSystemGetDriverVersion": store_text(b"580.82"),
}


class ErrorString:
    def __call__(self, status: int) -> bytes:
        return b"Driver/library version mismatch"


class FakeNvml:
    """The driver's library, with two GPUs; ``fails`` names a function that answers error 9."""

    def __init__(self, fails: str = "") -> None:
        self.fails = fails
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name == "nvmlErrorString":
            return ErrorString()

        def function(*arguments: Any) -> int:
            self.calls.append(name)
            if name == self.fails:
                return 9
            ANSWERS.get(name, lambda *_: None)(*arguments)
            return 0

        return function


class TestNvml:
    def test_the_driver_is_read(self) -> None:
        driver = read_driver(FakeNvml())  # type: ignore[arg-type]
        assert (driver.version, driver.cuda, len(driver.gpus)) == ("580.82", (13, 2), 2)
        assert driver.gpus[1] == dataclasses.replace(H100, index=1)

    def test_its_errors_are_told_in_its_words(self) -> None:
        with pytest.raises(NvmlError, match="nvmlInit_v2: Driver/library version mismatch"):
            read_driver(FakeNvml("nvmlInit_v2"))  # type: ignore[arg-type]

    def test_it_is_shut_down_after_an_error(self) -> None:
        library = FakeNvml("nvmlDeviceGetName")
        with pytest.raises(NvmlError):
            read_driver(library)  # type: ignore[arg-type]
        assert library.calls[-1] == "nvmlShutdown"


class TestCuda:
    def test_gpu_driver_and_torch_that_fit_are_available(self) -> None:
        probe = judge(DRIVER, TORCH, {})
        assert probe.status is Status.AVAILABLE
        assert [d.arch for d in probe.devices] == ["sm_90", "sm_90"]
        assert probe.devices[0].memory_bytes == 80 << 30

    @pytest.mark.parametrize("torch", [None, PLAIN_TORCH])
    def test_a_gpu_without_a_torch_for_it_is_absent_with_the_install_line(
        self, torch: TorchBuild | None
    ) -> None:
        probe = judge(DRIVER, torch, {})
        assert probe.status is Status.ABSENT
        assert "headstock[cuda]" in probe.remedy

    def test_a_driver_older_than_torch_needs_is_broken(self) -> None:
        probe = judge(Driver("570", (12, 8), (H100,)), TORCH, {})
        assert probe.status is Status.BROKEN
        assert "12.8" in probe.reason
        assert probe.remedy

    def test_a_torch_that_is_too_old_is_broken(self) -> None:
        probe = judge(DRIVER, TorchBuild("2.9.0+cu130", {"cuda": "13.0"}), {})
        assert probe.status is Status.BROKEN

    def test_a_gpu_that_is_too_old_is_absent(self) -> None:
        assert judge(Driver("580", (13, 0), (OLD,)), TORCH, {}).status is Status.ABSENT

    @pytest.mark.parametrize(
        ("listed", "uuids"),
        [
            (None, ["GPU-aa", "GPU-bb"]),
            ("", []),
            ("-1", []),
            ("1", ["GPU-bb"]),
            ("1,0", ["GPU-bb", "GPU-aa"]),
            ("GPU-b", ["GPU-bb"]),
            ("0,7,1", ["GPU-aa"]),
        ],
    )
    def test_hidden_gpus_do_not_count(self, listed: str | None, uuids: list[str]) -> None:
        assert [gpu.uuid for gpu in visible(DRIVER.gpus, listed)] == uuids

    def test_no_driver_is_absent(self, tmp_path: Path) -> None:
        assert without_library(tmp_path).status is Status.ABSENT

    def test_a_driver_without_its_library_is_broken(self, tmp_path: Path) -> None:
        write(tmp_path, "dev/nvidiactl")
        assert without_library(tmp_path).status is Status.BROKEN


def write_gpus(root: Path, num_gpus: int = 1) -> None:
    write(root, "dev/kfd")
    write(root, f"{TOPOLOGY}/0/properties", "simd_count 0\ngfx_target_version 0\n")
    for node in range(1, num_gpus + 1):
        write(root, f"{TOPOLOGY}/{node}/properties", "gfx_target_version 90402\n")
        bank = f"{TOPOLOGY}/{node}/mem_banks/0/properties"
        write(root, bank, f"heap_type 1\nsize_in_bytes {1024 * node}\n")


ROCM_TORCH = TorchBuild("2.11.0+rocm7.2", {"hip": "7.2.26015"})


class TestRocm:
    def test_no_kfd_is_absent(self, tmp_path: Path) -> None:
        probe = judge_rocm(tmp_path, ROCM_TORCH, {})
        assert (probe.status, probe.reason) == (Status.ABSENT, "no /dev/kfd")

    def test_gpus_are_found_beside_processors(self, tmp_path: Path) -> None:
        write_gpus(tmp_path)
        probe = judge_rocm(tmp_path, ROCM_TORCH, {})
        assert probe.status is Status.AVAILABLE
        assert probe.reason == "1 x gfx942 (gfx942), torch 2.11.0+rocm7.2, ROCm 7.2.26015"
        assert probe.devices[0].memory_bytes == 1024

    @pytest.mark.parametrize(
        ("torch", "reason"),
        [
            (None, "no torch"),
            (PLAIN_TORCH, "2.13.0+cpu is built without ROCm"),
            (TorchBuild("2.7.1+rocm6.3", {"hip": "6.3"}), "older than 2.8"),
        ],
    )
    def test_torch_must_be_built_for_them(
        self, tmp_path: Path, torch: TorchBuild | None, reason: str
    ) -> None:
        write_gpus(tmp_path)
        probe = judge_rocm(tmp_path, torch, {})
        assert probe.status is Status.ABSENT
        assert reason in probe.reason
        assert "build for ROCm" in (probe.remedy or "")

    @pytest.mark.parametrize(
        ("listed", "sizes"), [("1", [2048]), ("1,0", [2048, 1024]), ("0,7,1", [1024])]
    )
    def test_hidden_gpus_do_not_count(self, tmp_path: Path, listed: str, sizes: list[int]) -> None:
        write_gpus(tmp_path, 2)
        devices = judge_rocm(tmp_path, ROCM_TORCH, {"HIP_VISIBLE_DEVICES": listed}).devices
        assert [device.memory_bytes for device in devices] == sizes
        assert [device.index for device in devices] == list(range(len(sizes)))

    def test_all_may_be_hidden(self, tmp_path: Path) -> None:
        write_gpus(tmp_path, 2)
        probe = judge_rocm(tmp_path, ROCM_TORCH, {"HIP_VISIBLE_DEVICES": ""})
        assert (probe.status, probe.reason) == (
            Status.ABSENT,
            "HIP_VISIBLE_DEVICES hides 2 GPUs",
        )

    @pytest.mark.parametrize(
        ("version", "name"), [(90402, "gfx942"), (90010, "gfx90a"), (110001, "gfx1101")]
    )
    def test_versions_have_the_compilers_names(self, version: int, name: str) -> None:
        assert gfx_name(version) == name


class TestTpu:
    def test_other_pci_devices_are_no_tpu(self, tmp_path: Path) -> None:
        write(tmp_path, "sys/bus/pci/devices/0/vendor", "0x8086\n")
        write(tmp_path, "sys/bus/pci/devices/0/device", "0x0063\n")
        assert probe_tpu(tmp_path, {}.get).reason == "no TPU on the PCI bus"

    @pytest.mark.parametrize(
        ("installed", "status", "reason"),
        [
            ({}, Status.ABSENT, "4 x TPU v6e, but neither torch-xla nor torch-tpu"),
            ({"torch": "2.9.1", "torch-xla": "2.9.0"}, Status.AVAILABLE, "torch-xla 2.9.0"),
            ({"torch": "2.13.0+cpu", "torch-tpu": "0.2.0"}, Status.AVAILABLE, "torch-tpu 0.2.0"),
            ({"torch": "2.13.0", "torch-xla": "2.9.0"}, Status.BROKEN, "built for PyTorch 2.9"),
        ],
    )
    def test_chips_need_a_runtime_that_fits_pytorch(
        self, tmp_path: Path, installed: dict[str, str], status: Status, reason: str
    ) -> None:
        for index in range(4):
            write(tmp_path, f"sys/bus/pci/devices/{index}/vendor", "0x1ae0\n")
            write(tmp_path, f"sys/bus/pci/devices/{index}/device", "0x006f\n")
        write(tmp_path, "dev/vfio/0")
        probe = probe_tpu(tmp_path, installed.get)
        assert (probe.status, len(probe.devices)) == (status, 4)
        assert reason in probe.reason

    def test_chips_without_device_files_are_broken(self, tmp_path: Path) -> None:
        write(tmp_path, "sys/bus/pci/devices/0/vendor", "0x1ae0\n")
        write(tmp_path, "sys/bus/pci/devices/0/device", "0x0063\n")
        probe = probe_tpu(tmp_path, {"torch": "2.9.1", "torch-xla": "2.9.0"}.get)
        assert probe.status is Status.BROKEN

    def test_the_cpu_device_of_torch_xla_serves_only_when_it_is_named(self, tmp_path: Path) -> None:
        probe = probe_tpu(tmp_path, {"torch": "2.9.1", "torch-xla": "2.9.0"}.get)
        assert probe.status is Status.AVAILABLE
        assert not probe.is_default
        assert probe_tpu(tmp_path, {"torch": "2.13.0"}.get).status is Status.ABSENT


class TestAscend:
    INSTALLED = {"torch": "2.13.0+cpu", "torch-npu": "2.13.0"}

    @pytest.fixture
    def cann(self, tmp_path: Path) -> dict[str, str]:
        write(tmp_path, "cann/lib64/libascendcl.so")
        return {"LD_LIBRARY_PATH": f"/nowhere:{tmp_path}/cann/lib64"}

    def npus(self, root: Path) -> Path:
        for name in ("davinci1", "davinci0", "davinci_manager"):
            write(root, f"dev/{name}")
        return root

    def test_no_device_file_is_absent(self, tmp_path: Path, cann: dict[str, str]) -> None:
        write(tmp_path, "dev/davinci_manager")
        probe = judge_ascend(tmp_path, self.INSTALLED.get, cann)
        assert (probe.status, probe.reason) == (Status.ABSENT, "no /dev/davinci*")

    def test_all_of_it_is_available(self, tmp_path: Path, cann: dict[str, str]) -> None:
        probe = judge_ascend(self.npus(tmp_path), self.INSTALLED.get, cann)
        assert probe.status is Status.AVAILABLE
        assert probe.reason == f"2 NPUs, torch-npu 2.13.0, CANN in {tmp_path}/cann/lib64"
        assert [device.index for device in probe.devices] == [0, 1]

    @pytest.mark.parametrize(
        ("installed", "status", "reason"),
        [
            ({"torch": "2.13.0"}, Status.ABSENT, "no torch-npu"),
            (
                {"torch": "2.12.1", "torch-npu": "2.13.0"},
                Status.BROKEN,
                "built for PyTorch 2.13, not for 2.12.1",
            ),
            ({"torch-npu": "2.13.0"}, Status.BROKEN, "not for None"),
        ],
    )
    def test_software_that_does_not_fit(
        self,
        tmp_path: Path,
        cann: dict[str, str],
        installed: dict[str, str],
        status: Status,
        reason: str,
    ) -> None:
        probe = judge_ascend(self.npus(tmp_path), installed.get, cann)
        assert probe.status is status
        assert reason in probe.reason
        assert "headstock[ascend]" in probe.remedy

    @pytest.mark.parametrize("folders", ["", "/nowhere", ":"])
    def test_no_cann_is_broken_and_says_what_to_source(self, tmp_path: Path, folders: str) -> None:
        environment = {"LD_LIBRARY_PATH": folders}
        probe = judge_ascend(self.npus(tmp_path), self.INSTALLED.get, environment)
        assert probe.status is Status.BROKEN
        assert "set_env.sh" in probe.remedy

    @pytest.mark.parametrize(
        ("listed", "names"),
        [("1,0", ["davinci1", "davinci0"]), ("1", ["davinci1"]), ("7", []), ("", [])],
    )
    def test_hidden_npus_are_not_there(
        self, tmp_path: Path, cann: dict[str, str], listed: str, names: list[str]
    ) -> None:
        environment = cann | {"ASCEND_RT_VISIBLE_DEVICES": listed}
        probe = judge_ascend(self.npus(tmp_path), self.INSTALLED.get, environment)
        assert [device.name for device in probe.devices] == names
        assert (probe.status is Status.AVAILABLE) == bool(names)


class TestXeon:
    def machine(self, root: Path, flags: str) -> Path:
        write(root, "proc/cpuinfo", f"processor\t: 0\nmodel name\t: Some CPU\nflags\t: {flags}\n\n")
        write(root, "proc/meminfo", "MemTotal:  2048 kB\n")
        return root

    @pytest.mark.parametrize(
        ("flags", "arch"),
        [
            ("avx2 fma f16c", "avx2"),
            ("avx2 fma f16c avx512f avx512bw avx512vl", "avx512"),
            ("avx2 fma f16c avx512f avx512bw avx512vl avx512_vnni", "avx512_vnni"),
            (
                "avx2 fma f16c avx512f avx512bw avx512vl avx512_bf16 amx_tile amx_bf16 amx_int8",
                "amx",
            ),
        ],
    )
    def test_the_best_instruction_set_is_named(self, tmp_path: Path, flags: str, arch: str) -> None:
        probe = probe_xeon(self.machine(tmp_path, flags), "x86_64")
        assert (probe.status, probe.score) == (Status.AVAILABLE, 10)
        assert (probe.devices[0].arch, probe.devices[0].memory_bytes) == (arch, 2 << 20)

    def test_a_processor_without_avx2_is_absent_and_says_what_lacks(self, tmp_path: Path) -> None:
        probe = probe_xeon(self.machine(tmp_path, "sse4_2 fma"), "x86_64")
        assert (probe.status, probe.reason) == (Status.ABSENT, "Some CPU lacks avx2, f16c")

    @pytest.mark.parametrize("machine", ["aarch64", "arm64", "riscv64"])
    def test_another_instruction_set_is_absent(self, tmp_path: Path, machine: str) -> None:
        assert probe_xeon(self.machine(tmp_path, "avx2"), machine).status is Status.ABSENT

    def test_another_operating_system_is_absent(self, tmp_path: Path) -> None:
        assert probe_xeon(tmp_path, "AMD64").status is Status.ABSENT
