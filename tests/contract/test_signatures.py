"""What packages outside of Headstock use changes with the version of the hooks, or not at all."""

from __future__ import annotations

from pathlib import Path

from headstock.plugins.hooks import HOOK_API
from headstock.testing.signatures import difference, heading, main, signatures

FILE = Path(__file__).parent / "signatures.txt"


def test_the_signatures_are_those_that_were_promised() -> None:
    assert difference(FILE) is None, difference(FILE)


def test_a_changed_signature_is_named_with_what_to_do(tmp_path: Path) -> None:
    kept = tmp_path / "signatures.txt"
    text = FILE.read_text(encoding="utf-8")
    kept.write_text(text.replace("weight_D: Tensor, *, eps: float)", "weight_D: Tensor)"))
    shown = difference(kept)
    assert shown is not None
    assert "+headstock.ops.norm.rms_norm: op rms_norm(x_TD" in shown
    assert "raise HOOK_API" in shown


def test_renewing_under_the_same_version_is_refused(tmp_path: Path) -> None:
    kept = tmp_path / "signatures.txt"
    kept.write_text(f"{heading(HOOK_API)}\nsomething that is gone\n")
    assert main([str(kept), "--renew"]) == 1
    assert "something that is gone" in kept.read_text()


def test_renewing_under_a_newer_version_writes_the_file(tmp_path: Path) -> None:
    kept = tmp_path / "signatures.txt"
    kept.write_text(f"{heading((1, 0))}\nsomething that is gone\n")
    assert main([str(kept), "--renew"]) == 0
    assert kept.read_text().splitlines() == [heading(HOOK_API), *signatures()]


def test_nothing_depends_on_the_process() -> None:
    lines = FILE.read_text(encoding="utf-8").splitlines()
    assert lines[1:] == sorted(lines[1:])
    assert not [line for line in lines if " at 0x" in line]


def test_hooks_structs_ops_and_layers_are_among_them() -> None:
    text = FILE.read_text(encoding="utf-8")
    for part in (
        "headstock.plugins.hooks.headstock_register_routes(registry: RouteRegistry)",
        "headstock.plugins.device.DeviceFacts.is_functional: bool = False",
        "headstock.ops.steps.Slots.lengths_S: Tensor",
        "headstock.ops.linear.linear: built op linear(",
        "headstock.ops.model_step.StepProvider.why_not(self, width: StepWidth)",
        "headstock.graph.norm.RMSNorm(",
        "headstock.testing.oracle.case.ModelCase.",
    ):
        assert part in text, part
