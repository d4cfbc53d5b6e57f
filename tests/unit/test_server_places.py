"""Who gets a place where more want one than there are."""

from __future__ import annotations

import pytest

from headstock.config.schema import ServerSettings
from headstock.errors import ConfigError, RequestError
from headstock.server.errors import BusyError
from headstock.server.keys import read_keys
from headstock.server.payers import Account, Limits, Payer, payer_at, read_limits
from headstock.server.places import GRACE_S, Places


class Door:
    """A front door with 2 slots and ``num_queued`` places more, in which an end took 0.1 s."""

    def __init__(self, num_queued: int = 6, num_reserved: int = 1) -> None:
        self.places = Places(num_queued, num_reserved)
        self.now_s = 100.0
        self.held: list[Account] = []
        earlier = self.places.account(Payer("earlier"))
        for _ in range(20):
            self.now_s += 0.1
            self.places.begin(earlier, 0, self.now_s)
            self.places.end(earlier, 0, self.now_s)

    def ask(self, name: str, count: int = 1, limits: Limits | None = None) -> float | None:
        """Ask for places; returns None when they are given, or when to come back. Seconds."""
        account = self.places.account(Payer(name, limits or Limits()))
        try:
            account.check_quotas(count, 10, self.now_s)
            self.places.check(account, count, num_slots=2, now_s=self.now_s)
        except BusyError as error:
            return error.retry_after_s
        for _ in range(count):
            self.places.begin(account, 10, self.now_s)
            self.held.append(account)
        return None

    def end(self, name: str, num_tokens: int = 0) -> None:
        account = next(each for each in self.held if each.id == name)
        self.held.remove(account)
        self.places.end(account, num_tokens, self.now_s)


def test_a_lone_payer_has_all_places_and_no_more() -> None:
    door = Door()
    assert [door.ask("a") for _ in range(9)] == [None] * 8 + [1.0]
    door.end("a")
    door.now_s += 1.0
    assert door.ask("a") is None


def test_who_was_refused_first_is_next() -> None:
    door = Door(num_reserved=0)
    for _ in range(8):
        door.ask("hog")
    assert door.ask("first") is not None
    assert door.ask("second") is not None
    door.end("hog")
    door.now_s += 1.0
    assert door.ask("third") is not None, "the place is kept for who was refused before"
    assert door.ask("second") is not None
    assert door.ask("first") is None


def test_a_turn_is_kept_for_some_time_only() -> None:
    door = Door(num_reserved=0)
    for _ in range(8):
        door.ask("hog")
    assert door.ask("gone") is not None
    door.end("hog")
    door.now_s += 1.0 + GRACE_S + 0.1
    assert door.ask("other") is None


def test_a_slot_that_is_free_is_kept_for_nobody() -> None:
    door = Door(num_reserved=0)
    for _ in range(8):
        door.ask("hog")
    for name in "bcdefghijkl":
        assert door.ask(name) is not None
    for _ in range(7):
        door.end("hog")
    door.now_s += 1.0
    assert door.ask("new") is None


def test_who_has_used_little_is_taken_where_others_fill_all() -> None:
    door = Door()
    for _ in range(8):
        door.ask("hog")
    door.now_s += 1.0
    assert door.ask("hog") is not None
    assert door.ask("polite") is None, "a place is reserved for who has used less than the others"


def test_while_others_are_refused_a_payer_has_its_share_at_most() -> None:
    door = Door(num_reserved=0)
    for _ in range(8):
        door.ask("hog")
    assert door.ask("other") is not None
    for _ in range(3):
        door.end("hog")
    door.now_s += 1.0
    assert door.ask("hog") is not None, "it holds 5 of 8, and its share is 4"
    assert door.ask("other") is None


def test_shares_are_weighted() -> None:
    door = Door(num_reserved=0)
    limits = Limits(share=3)
    for _ in range(8):
        door.ask("large", limits=limits)
    assert door.ask("other") is not None
    for _ in range(3):
        door.end("large")
    door.now_s += 1.0
    assert door.ask("large", limits=limits) is None, "it holds 5 of 8, and its share is 6"


def test_a_call_larger_than_its_share_has_its_turn_too() -> None:
    door = Door(num_reserved=0)
    for number in range(8):
        door.ask(f"payer {number}")
    assert door.ask("large", 4) is not None
    for number in range(3):
        door.end(f"payer {number}")
        door.now_s += 0.5
        assert door.ask(f"payer {number}") is not None, "the places are kept for the large call"
    door.end("payer 3")
    assert door.ask("large", 4) is None


def test_who_comes_back_too_early_takes_no_turn_of_others() -> None:
    door = Door(num_reserved=0)
    for _ in range(8):
        door.ask("hog")
    for _ in range(50):
        assert door.ask("eager") is not None
    assert door.ask("patient") is not None
    for _ in range(5):
        door.end("hog")
    door.now_s += 1.0
    assert door.ask("patient") is None


def test_later_turns_are_told_to_come_later() -> None:
    door = Door(num_queued=2, num_reserved=0)
    for _ in range(4):
        door.ask("hog")
    told = [door.ask(f"client {number}") for number in range(60)]
    assert told[0] == 1.0
    assert told == sorted(told, key=lambda each: each or 0.0)
    assert told[-1] == 4.0, "60 ends of less than 0.1 s come before it, and some haste"


def test_more_than_all_places_is_refused_for_good() -> None:
    with pytest.raises(RequestError, match="2112 completions; the server has 8 places") as raised:
        Door().ask("a", 33 * 64)
    assert raised.value.code == "too_many_completions"
    assert raised.value.field == "n"


def test_quotas_are_kept_and_come_back() -> None:
    door = Door(num_queued=1000)
    limits = Limits(requests_per_minute=3)
    assert [door.ask("a", limits=limits) for _ in range(4)] == [None, None, None, 20.0]
    door.now_s += 20.0
    assert [door.ask("a", limits=limits) for _ in range(2)] == [None, 20.0]
    limits = Limits(tokens_per_minute=100)
    assert door.ask("b", limits=limits) is None
    door.end("b", num_tokens=200)
    assert door.ask("b", limits=limits) == 72.0
    limits = Limits(concurrent=2)
    assert [door.ask("c", limits=limits) for _ in range(3)] == [None, None, 1.0]
    door.end("c")
    assert door.ask("c", limits=limits) is None


def test_limits_are_read_from_behind_the_key() -> None:
    line = "ann:user:key-of-ann-0 share=2 tokens_per_minute=5000"
    ring = read_keys(ServerSettings(api_keys=[line, "bob:user:key-of-bob-0"]))
    ann = ring.caller("Bearer key-of-ann-0")
    bob = ring.caller("Bearer key-of-bob-0")
    assert ann is not None
    assert bob is not None
    assert ann.payer.limits == Limits(share=2, tokens_per_minute=5000)
    assert bob.payer.limits == Limits()
    assert ann.payer.id != bob.payer.id


@pytest.mark.parametrize("options", ["shares=2", "share=0", "share=x", "share", "share=1 share=2"])
def test_limits_that_are_none_are_the_operators_error(options: str) -> None:
    with pytest.raises(ConfigError, match="The API key of 'ann'"):
        read_keys(ServerSettings(api_keys=[f"ann:user:key-of-ann-0 {options}"]))


def test_without_keys_an_address_counts() -> None:
    assert payer_at("10.0.0.1") != payer_at("10.0.0.2")
    assert payer_at("2001:db8::1") == payer_at("2001:db8::2")
    assert payer_at("2001:db8::1") != payer_at("2001:db8:0:1::1")


def test_a_call_may_take_all_places_that_there_are() -> None:
    assert Door().ask("a", 8) is None
    with pytest.raises(RequestError, match="asks for 9 completions; the server has 8 places"):
        Door().ask("a", 9)


def test_who_is_behind_others_is_told_to_come_later() -> None:
    door = Door(num_reserved=0)
    for _ in range(8):
        door.ask("hog")
    waits = [door.ask(f"payer-{number}", 8) or 0.0 for number in range(40)]
    assert waits == sorted(waits)
    assert waits[-1] > waits[0]


@pytest.mark.parametrize(("number", "is_allowed"), [(0, False), (1, True), (2**31 - 1, True)])
def test_a_number_of_a_key_has_bounds(number: int, is_allowed: bool) -> None:
    assert read_limits("", "ann") == Limits()
    if is_allowed:
        assert read_limits(f"share={number}", "ann") == Limits(share=number)
    else:
        with pytest.raises(ConfigError, match=f"share={number}"):
            read_limits(f"share={number}", "ann")
    with pytest.raises(ConfigError, match=r"share=2147483648"):
        read_limits("share=2147483648", "ann")
