"""Devices that break what the engine builds on."""

from __future__ import annotations

import torch
from headstock_acme.device import Recorded

from headstock.plugins.host import Arrived
from headstock_mutants.mutation import Changed, mutates

GRAPHS = "6_graphs::replays_equal_eager_runs_of_a_feed_forward_layer"


@mutates("device", "2_device::free_memory_falls_while_memory_is_held", quick=True)
def free_memory_never_falls(device):
    memory = device.memory()
    return Changed(device, memory=lambda: memory)


@mutates("device", "2_device::memory_figures_fit_together")
def more_is_free_than_there_is(device):
    from dataclasses import replace

    memory = device.memory()
    return Changed(device, memory=lambda: replace(memory, free=memory.total + 1))


@mutates("device", "2_device::a_fetched_tensor_arrives_as_it_was_when_asked_for")
def fetch_returns_the_source(device):
    return Changed(device, fetch=lambda source, into: Arrived(source))


@mutates("device", "2_device::a_fetched_tensor_arrives_as_it_was_when_asked_for")
def fetch_copies_when_it_is_waited_for(device):
    class Late:
        def __init__(self, source, into):
            self.source, self.into = source, into

        def wait(self):
            return self.into.copy_(self.source)

    return Changed(device, fetch=Late)


@mutates("device", "2_device::memory_comes_in_the_shape_that_was_asked[dtype1]")
def all_memory_is_float(device):
    return Changed(device, empty=lambda shape, dtype: torch.empty(shape))


@mutates("device", "2_device::memory_comes_in_the_shape_that_was_asked[dtype0]")
def memory_is_strided(device):
    return Changed(device, empty=lambda shape, dtype: torch.empty(shape[::-1], dtype=dtype).T)


@mutates("device", "2_device::host_buffers_are_zeroed_host_memory")
def host_buffers_hold_anything(device):
    return Changed(device, host_buffer=lambda shape, dtype: torch.full(shape, 7, dtype=dtype))


@mutates("device", "2_device::it_has_a_name_and_a_depth")
def no_step_is_in_flight(device):
    return Changed(device, depth=0)


@mutates("device", "2_device::padded_steps_are_no_smaller_than_the_real_ones")
def buckets_are_too_small(device):
    policy = device.graph_policy
    smaller = Changed(policy, bucket=lambda tokens, rows, is_uniform: (1, 1))
    return Changed(device, graph_policy=smaller)


@mutates("device", "2_device::every_step_captured_in_advance_is_its_own_bucket")
def what_is_warmed_up_is_never_asked(device):
    policy = device.graph_policy
    odd = Changed(policy, warm_up=lambda max_tokens, max_rows: [(3, 3, True)])
    return Changed(device, graph_policy=odd)


@mutates("device", GRAPHS)
def replays_do_nothing(device):
    class Idle(Recorded):
        def replay(self):
            pass

    def capture(key, step):
        step()
        return Idle(step)

    return Changed(device, capture=capture)


@mutates("device", GRAPHS)
def replays_stop_after_ten(device):
    class Tired(Recorded):
        left = 10

        def replay(self):
            self.left -= 1
            if self.left > 0:
                super().replay()

    def capture(key, step):
        step()
        return Tired(step)

    return Changed(device, capture=capture)
