"""Pages that are given back: their memory is free, and what is drawn after that is the same."""

from __future__ import annotations

import weakref

import pytest
import torch

from headstock.errors import ConfigError

PROMPTS = [[3, 14, 15, 9, 26, 5], [35, 8, 9], [7] * 11, [2]]


@pytest.fixture
def sleeper(tape_device):
    class Sleeper(tape_device):
        """Knows when it is trimmed, and can be short of memory."""

        def __init__(self) -> None:
            super().__init__(is_ragged=True)
            self.trimmed, self.is_full = 0, False

        def empty(self, shape, dtype):
            if self.is_full and shape != (0,):
                raise torch.OutOfMemoryError("no room")
            return super().empty(shape, dtype)

        def trim(self) -> None:
            self.trimmed += 1
            self.keys.clear()

    return Sleeper()


def jobs(kit):
    return [kit.job(prompt, 6 + 2 * i) for i, prompt in enumerate(PROMPTS)]


def outputs(kit, driver):
    made = jobs(kit)
    driver.step, driver.plans = 0, []
    driver.run(*made)
    return [job.outputs for job in made]


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("captures", [True, False])
def test_what_is_drawn_after_sleep_is_what_was_drawn_before(static_kit, sleeper, depth, captures):
    kit = static_kit
    runner = kit.runner(kit.model, sleeper, depth=depth, captures=captures)
    driver = kit.driver(runner)
    before = outputs(kit, driver)
    memory = [weakref.ref(layer.kv) for layer in kit.model.layers]
    num_bytes = sum(layer.kv.nbytes for layer in kit.model.layers)
    assert runner.release_pages() == num_bytes
    assert [ref() for ref in memory] == [None, None], "something holds the pages"
    assert [layer.kv.nbytes for layer in kit.model.layers] == [0, 0]
    assert sleeper.trimmed == 1
    runner.restore_pages()
    with torch.inference_mode():
        for layer in kit.model.layers:
            layer.kv[1:].fill_(torch.nan)  # a page is written before it is read
    assert outputs(kit, driver) == before
    assert bool(sleeper.keys) == captures
    assert runner.release_pages() == num_bytes


def test_without_room_the_pages_stay_released(static_kit, sleeper):
    kit = static_kit
    runner = kit.runner(kit.model, sleeper, captures=True)
    driver = kit.driver(runner)
    before = outputs(kit, driver)
    runner.release_pages()
    sleeper.is_full = True
    with pytest.raises(ConfigError, match="no memory for the pages"):
        runner.restore_pages()
    sleeper.is_full = False
    runner.restore_pages()
    assert outputs(kit, driver) == before
