"""Sums of small tensors over GPUs that write into each other's memory: one kernel, one way.

Every rank writes its numbers into a mailbox of each other rank, and adds up what it finds in its
own. Two kernels differ in how a reader knows that the numbers are there:

* *Words*, for the smallest: each 8 bytes written hold 4 bytes of numbers and 4 of the call's
  number, and arrive whole. A reader that sees the call's number has the numbers too: nothing is
  waited for but the data. (The idea is that of NCCL's protocol "LL".)
* *Blocks*: a block of numbers, then the call's number in the block's flag, released after them.
  No byte is wasted, and one more trip is waited for.

A mailbox has two halves for calls in turn. Writing call n + 2 cannot spoil call n: a rank begins
it after it has read all of call n + 1, which the others began after they had ended call n. Blocks
of a launch count their calls themselves, in memory, so that a captured launch can be replayed;
block i of a rank speaks with blocks i of the others only.

Ranks add in float32 in the order of ranks, so that all of them get the same bits.
"""

# ruff: noqa: ANN001, ANN201, ANN202 - arguments of kernels are typed by their launch
# Triton types launches and constants by classes of its own.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from headstock_cuda.peer_memory import PeerMemory

MOST_RANKS = 4
"""With more the writes, one to each other rank, outweigh what they save."""
MOST_IN_WORDS = {2: 128 << 10, 3: 64 << 10, 4: 32 << 10}
"""Bytes of a tensor that is sent in words, by the number of ranks."""
MOST_IN_BLOCKS = {2: 4 << 20, 3: 2 << 20, 4: 1 << 20}
"""And in blocks; above it NCCL is faster. Two ranks were measured (``benchmarks/collectives.py``),
the others follow from the bytes that they write."""
WORDS, WORDS_WARPS = 512, 4
"""Words of 4 bytes that a block of a launch sends; its warps."""
NUMBERS, NUMBERS_WARPS = 8192, 8
"""Numbers that a block of a launch sends in one piece; its warps."""
ALIGNED = 16
"""Numbers that tensors sent in blocks have a multiple of, and bytes that they begin at."""
ITEM = 2
"""Bytes of a number."""
TYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
NO_PEERS = b"-"


@dataclass(frozen=True, slots=True)
class Mailboxes:
    """Where things are in a rank's memory. Bytes.

    Attributes:
        size: Ranks; each has a part of every area.
        most_words: Blocks of a launch that sends words.
        most_blocks: Of one that sends blocks.
    """

    size: int
    most_words: int
    most_blocks: int

    @property
    def blocks(self) -> int:
        """Where numbers in blocks begin, after those in words of 8 bytes."""
        return self.size * 2 * self.most_words * WORDS * 8

    @property
    def flags(self) -> int:
        """Where the blocks' flags begin."""
        return self.blocks + self.size * 2 * self.most_blocks * NUMBERS * ITEM

    @property
    def num_bytes(self) -> int:
        """Of all of it."""
        return self.flags + self.size * self.most_blocks * 4


def mailboxes(size: int) -> Mailboxes:
    """Return those of one of ``size`` ranks."""
    return Mailboxes(
        size=size,
        most_words=MOST_IN_WORDS[size] // (2 * ITEM * WORDS),
        most_blocks=MOST_IN_BLOCKS[size] // (ITEM * NUMBERS),
    )


def open_peer_sum(store: Any, rank: int, size: int, device: torch.device) -> PeerSum | None:
    """Connect the ranks' mailboxes; None where some GPU cannot reach another.

    Args:
        store: What the ranks exchange handles by: ``set`` and ``get`` of bytes.
        rank: This process's.
        size: How many.
        device: This rank's GPU.

    Raises:
        DeviceError: The driver refuses what it said it could.
        RuntimeError: The others did not come in time.
    """
    if size > MOST_RANKS:
        return None
    count = torch.cuda.device_count()
    reached = all(
        torch.cuda.can_device_access_peer(device.index, other)
        for other in range(count)
        if other != device.index
    )
    memory = PeerMemory(mailboxes(size).num_bytes) if reached else None
    torch.cuda.synchronize(device)  # zeroed before others write
    store.set(str(rank), memory.handle() if memory is not None else NO_PEERS)
    handles = [bytes(store.get(str(other))) for other in range(size)]
    if memory is None or NO_PEERS in handles:
        if memory is not None:
            memory.close()
        return None
    addresses = [
        memory.address if other == rank else memory.open(handle)
        for other, handle in enumerate(handles)
    ]
    return PeerSum(memory, addresses, rank, device)


class PeerSum:
    """Adds tensors of 2-byte numbers over the ranks.

    Args:
        memory: This rank's mailboxes.
        addresses: Of each rank's mailboxes.
        rank: This process's.
        device: This rank's GPU.
    """

    def __init__(
        self, memory: PeerMemory, addresses: list[int], rank: int, device: torch.device
    ) -> None:
        self._memory = memory
        self._rank, self._size = rank, len(addresses)
        self._most_in_words = MOST_IN_WORDS[self._size]
        self._most_bytes = MOST_IN_BLOCKS[self._size]
        self._boxes = mailboxes(self._size)
        self._device = device
        self._addresses_N = torch.tensor(addresses, dtype=torch.int64, device=device)
        self._word_calls_B, self._block_calls_B = (
            torch.zeros(count, dtype=torch.int32, device=device)
            for count in (self._boxes.most_words, self._boxes.most_blocks)
        )
        self._stopped_1 = torch.zeros(1, dtype=torch.int32, device=device)
        torch.cuda.synchronize(device)

    def takes(self, x: Tensor) -> bool:
        """Whether ``x``, which is contiguous, is of a size and dtype that this is for."""
        if x.dtype not in TYPES or not 0 < x.nbytes <= self._most_bytes:
            return False
        is_aligned = x.numel() % ALIGNED == 0 and x.data_ptr() % ALIGNED == 0
        return is_aligned or x.nbytes <= self._most_in_words

    def add(self, x: Tensor) -> Tensor:
        """Return the sum over the ranks, in ``x``."""
        if x.nbytes <= self._most_in_words:
            return self.add_in_words(x)
        return self.add_in_blocks(x)

    def add_in_words(self, x: Tensor) -> Tensor:
        """Return the sum over the ranks, in ``x``, sent in words."""
        add_words[(triton.cdiv(x.numel(), 2 * WORDS),)](
            x.view(torch.int16),
            self._addresses_N,
            self._word_calls_B,
            self._stopped_1,
            x.numel(),
            MOST_BLOCKS=self._boxes.most_words,
            RANK=self._rank,
            SIZE=self._size,
            TYPE=TYPES[x.dtype],
            WORDS=WORDS,
            num_warps=WORDS_WARPS,
        )
        return x

    def add_in_blocks(self, x: Tensor) -> Tensor:
        """Return the sum over the ranks, in ``x``, sent in blocks."""
        add_blocks[(triton.cdiv(x.numel(), NUMBERS),)](
            x,
            self._addresses_N,
            self._block_calls_B,
            self._stopped_1,
            x.numel() // ALIGNED,
            BLOCKS_AT=self._boxes.blocks,
            FLAGS_AT=self._boxes.flags,
            MOST_BLOCKS=self._boxes.most_blocks,
            RANK=self._rank,
            SIZE=self._size,
            NUMBERS=NUMBERS,
            ALIGNED=ALIGNED,
            num_warps=NUMBERS_WARPS,
        )
        return x

    def stop(self) -> None:
        """Have kernels that wait for a lost rank end, with numbers that are not to be used."""
        aside = torch.cuda.Stream(self._device)
        with torch.cuda.stream(aside):
            self._stopped_1.fill_(1)
        aside.synchronize()

    def close(self) -> None:
        """Free the mailboxes. Nothing may be queued any more."""
        self._memory.close()


@triton.jit(do_not_specialize=["count"])
def add_words(
    bits,
    addresses,
    calls,
    stopped,
    count,
    MOST_BLOCKS: tl.constexpr,
    RANK: tl.constexpr,
    SIZE: tl.constexpr,
    TYPE: tl.constexpr,
    WORDS: tl.constexpr,
):
    """Send ``count`` numbers, given as 16-bit integers, in words and add up all ranks'."""
    block = tl.program_id(0)
    call = tl.load(calls + block) + 1
    lanes = tl.arange(0, WORDS)
    first = block * 2 * WORDS + lanes
    second = first + WORDS
    low = tl.load(bits + first, mask=first < count, other=0)
    high = tl.load(bits + second, mask=second < count, other=0)
    sent = (low.to(tl.int64) & 0xFFFF) | ((high.to(tl.int64) & 0xFFFF) << 16)
    sent = sent | (call.to(tl.int64) << 32)
    half = (call & 1) * MOST_BLOCKS + block
    place = half.to(tl.int64) * WORDS + lanes
    mailbox = 2 * MOST_BLOCKS * WORDS
    for peer in tl.static_range(SIZE):
        if peer != RANK:
            base = tl.load(addresses + peer).to(tl.pointer_type(tl.int64))
            _send(base + RANK * mailbox + place, sent)
    own = tl.load(addresses + RANK).to(tl.pointer_type(tl.int64))
    low_sum = tl.zeros((WORDS,), tl.float32)
    high_sum = tl.zeros((WORDS,), tl.float32)
    for source in tl.static_range(SIZE):
        got = sent
        if source != RANK:
            got = _receive(own + source * mailbox + place, call, stopped)
        low_sum += _number(got, TYPE)
        high_sum += _number(got >> 16, TYPE)
    low = low_sum.to(TYPE).to(tl.int16, bitcast=True)
    high = high_sum.to(TYPE).to(tl.int16, bitcast=True)
    tl.store(bits + first, low, mask=first < count)
    tl.store(bits + second, high, mask=second < count)
    tl.debug_barrier()  # every thread has read the count
    tl.store(calls + block, call)


@triton.jit(do_not_specialize=["groups"])
def add_blocks(
    x,
    addresses,
    calls,
    stopped,
    groups,
    BLOCKS_AT: tl.constexpr,
    FLAGS_AT: tl.constexpr,
    MOST_BLOCKS: tl.constexpr,
    RANK: tl.constexpr,
    SIZE: tl.constexpr,
    NUMBERS: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Send ``groups`` of ``ALIGNED`` numbers in blocks with a flag each; add up all ranks'."""
    count = groups * ALIGNED
    block = tl.program_id(0)
    call = tl.load(calls + block) + 1
    lanes = tl.arange(0, NUMBERS)
    place = block * NUMBERS + lanes
    own = tl.load(x + place, mask=place < count, other=0.0)
    half = (call & 1) * MOST_BLOCKS + block
    slot = half.to(tl.int64) * NUMBERS + lanes
    mailbox = 2 * MOST_BLOCKS * NUMBERS
    for peer in tl.static_range(SIZE):
        if peer != RANK:
            theirs = (tl.load(addresses + peer) + BLOCKS_AT).to(tl.pointer_type(own.dtype))
            tl.store(tl.multiple_of(theirs, 16) + RANK * mailbox + slot, own)
    tl.debug_barrier()  # every thread has written before the flag is released
    for peer in tl.static_range(SIZE):
        if peer != RANK:
            flags = (tl.load(addresses + peer) + FLAGS_AT).to(tl.pointer_type(tl.int32))
            tl.atomic_xchg(flags + RANK * MOST_BLOCKS + block, call, sem="release", scope="sys")
    base = tl.load(addresses + RANK)
    numbers = tl.multiple_of((base + BLOCKS_AT).to(tl.pointer_type(own.dtype)), 16) + slot
    flags = (base + FLAGS_AT).to(tl.pointer_type(tl.int32)) + block
    total = tl.zeros((NUMBERS,), tl.float32)
    for source in tl.static_range(SIZE):
        got = own
        if source != RANK:
            _await(flags + source * MOST_BLOCKS, call, stopped)
            got = tl.load(numbers + source * mailbox, cache_modifier=".cg")
        total += got.to(tl.float32)
    tl.store(x + place, total.to(own.dtype), mask=place < count)
    tl.debug_barrier()  # every thread has read the count
    tl.store(calls + block, call)


@triton.jit
def _await(flag, call, stopped):
    """Wait for a block's flag, or until the group is left."""
    missing = 1
    while missing != 0:
        found = tl.atomic_cas(flag, call, call, sem="acquire", scope="sys")
        missing = (found != call).to(tl.int32)
        if tl.load(stopped, volatile=True) != 0:
            missing = 0
    tl.debug_barrier()  # no thread reads before the one that saw the flag


@triton.jit
def _number(word, TYPE: tl.constexpr):
    """Return the number in the low 16 bits, in float32."""
    return (word & 0xFFFF).to(tl.int16).to(TYPE, bitcast=True).to(tl.float32)


@triton.jit
def _send(pointers, words):
    """Write whole words that other GPUs may see at once, in any order."""
    tl.inline_asm_elementwise(
        "st.relaxed.sys.global.b64 [$1], $2; mov.b32 $0, 0;",
        "=r,l,l",
        [pointers.to(tl.int64), words],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def _receive(pointers, call, stopped):
    """Read words until all are of ``call``, or the group is left."""
    got = tl.load(pointers, volatile=True)
    missing = tl.max(((got >> 32).to(tl.int32) != call).to(tl.int32), axis=0)
    while missing != 0:
        got = tl.load(pointers, volatile=True)
        missing = tl.max(((got >> 32).to(tl.int32) != call).to(tl.int32), axis=0)
        if tl.load(stopped, volatile=True) != 0:
            missing = 0
    return got
