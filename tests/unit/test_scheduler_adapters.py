"""The scheduler alone: places of LoRA adapters, and who waits for one."""

from __future__ import annotations

from types import SimpleNamespace

from tests.unit.scheduler_table import Table, limits_of, prompt


def test_rows_name_the_place_of_their_adapter() -> None:
    table = Table(limits_of(adapters=2))
    for name, adapter in (("a", "x"), ("b", ""), ("c", "y"), ("d", "x")):
        table.submit(name, prompt(5, ord(name)), adapter=adapter)
    plan = table.planned()
    assert [admit.adapter for admit in plan.admit] == [1, 0, 2, 1]
    assert plan.adapters == [(1, "x"), (2, "y")]


def test_an_adapter_keeps_its_place_until_another_needs_it() -> None:
    table, placed = Table(limits_of(adapters=2)), []
    for name, adapter in (("a", "x"), ("b", "y"), ("c", "x"), ("d", "z"), ("e", "x")):
        table.submit(name, prompt(5, ord(name)), 1, adapter=adapter)
        placed.append(table.step().adapters)
    # The least recently used, y, gave way to z.
    assert placed == [[(1, "x")], [(2, "y")], [], [(2, "z")], []]


def test_adapters_are_placed_anew_after_a_step_that_failed() -> None:
    table = Table(limits_of(adapters=2))
    table.submit("a", prompt(5), adapter="x")
    assert table.planned().adapters == [(1, "x")]
    table.pending.clear()
    table.scheduler.fail_all("broken")
    for name, adapter in (("b", "x"), ("c", "y")):
        table.submit(name, prompt(5), adapter=adapter)
    assert sorted(name for _, name in table.planned().adapters) == ["x", "y"]


def test_an_adapter_that_is_forgotten_before_its_plan_is_not_placed() -> None:
    table = Table(limits_of(adapters=1))
    places = table.scheduler.adapters
    request = SimpleNamespace(adapter="x", adapter_place=0)
    places.spend(request, 1)
    places.refund(request)
    assert places.forget("x")
    assert not places.has_placed


def test_a_request_waits_for_its_adapters_place_and_may_be_overtaken() -> None:
    table = Table(limits_of(adapters=1))
    table.submit("a", prompt(5, 0), 4, adapter="x")
    table.submit("b", prompt(5, 50), 4, adapter="y")
    table.submit("c", prompt(5, 100), 4)
    assert [admit.adapter for admit in table.planned().admit] == [1, 0]
    table.settle()
    while not table.ended:
        table.step()
    assert table.planned().admit[0].adapter == 1


def test_who_waits_for_an_adapters_place_is_not_overtaken_for_ever() -> None:
    table = Table(limits_of(adapters=1, slots=2))
    table.submit("x0", prompt(3), 2, adapter="x")
    table.submit("y", prompt(3, 50), 1, adapter="y")
    for number in range(1, 200):
        table.submit(f"x{number}", prompt(3, number), 2, adapter="x")
        table.step()
    assert table.end_of("y").reason.kind == "length"


def test_adapters_share_no_prefixes() -> None:
    table = Table(limits_of(adapters=2))
    for name, adapter in (("a", "x"), ("b", "y"), ("c", "")):
        table.submit(name, prompt(9), adapter=adapter)
    assert table.planned().rows.query_max == [9, 9, 9]


def test_an_adapter_in_use_cannot_be_forgotten() -> None:
    table = Table(limits_of(adapters=1))
    table.submit("a", prompt(5), 1, adapter="x")
    table.planned()
    assert not table.scheduler.adapters.forget("x")
    table.settle(done=True)
    assert table.scheduler.adapters.forget("x")


def test_an_adapter_without_a_place_for_any_is_refused() -> None:
    table = Table()
    table.submit("a", prompt(5), adapter="x")
    assert "adapter 'x'" in table.end_of("a").reason.message
