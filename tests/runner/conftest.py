"""A model small enough to compute naively, and a driver that plans as an engine would."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch

from headstock.graph.context import Retention
from headstock.ops.attention import AttentionSpec
from headstock.ops.attention_reference import ReferenceAttention
from headstock.ops.base import OpRegistry, Resolver
from headstock.ops.communication import Group, SingleRank
from headstock.ops.sampling import uniform
from headstock.plugins.host import HostDevice
from headstock.runner.options import PaddedSizes
from headstock.runner.runner import TorchRunner
from headstock.runner.step import ModelParts
from headstock.speculative.provider import Drafter
from headstock.wire.steps import (
    FROM_DEVICE,
    FROM_HOST,
    Admit,
    PageAppends,
    PageGroup,
    Rows,
    RunnerLimits,
    StepPlan,
    StepResult,
    TreeNodes,
)
from tests.runner.tape import NoSync, TapeDevice

VOCAB, SIZE, HEADS, KV_HEADS, HEAD_DIM, PAGE = 61, 24, 4, 2, 6, 4
MAX_LENGTH, SLOTS, STEP_TOKENS = 64, 6, 48


class StaticAttention(ReferenceAttention):
    """Attends token by token over a fixed number of pages: reads nothing of the host's rows."""

    def run(self, q_THD, kv, batch, *, sinks_H=None):
        num_pages = -(-batch.max_kv // PAGE)
        pages_TP = batch.page_table_RP[:, :num_pages].index_select(0, batch.row_of_token_T)
        found = kv.index_select(0, pages_TP.flatten()).unflatten(0, pages_TP.shape)
        k_TLKD, v_TLKD = found.transpose(1, 2).flatten(2, 3).unbind(1)
        is_past_TL = torch.arange(num_pages * PAGE) > batch.positions_T[:, None]
        v_TLKD = v_TLKD.masked_fill(is_past_TL[:, :, None, None], 0)
        q_TKGD = q_THD.unflatten(1, (KV_HEADS, -1))
        scores = torch.einsum("tkgd,tlkd->tkgl", q_TKGD, k_TLKD) * self.spec.scale
        scores = scores.masked_fill(is_past_TL[:, None, None], -torch.inf)
        return torch.einsum("tkgl,tlkd->tkgd", scores.softmax(-1), v_TLKD).flatten(1, 2)


class TinyLayer:
    """One attention layer with fixed random weights."""

    heads = (HEADS, KV_HEADS, KV_HEADS)
    group = 0
    ranks = SingleRank()

    def __init__(self, seed: int, provider: ReferenceAttention) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.provider = provider
        self.kv = torch.empty(0)
        self.qkv = torch.randn(SIZE, (HEADS + 2 * KV_HEADS) * HEAD_DIM, generator=draw) * 0.4
        self.out = torch.randn(HEADS * HEAD_DIM, SIZE, generator=draw) * 0.4

    def split(self, x_TD):
        qkv = (x_TD @ self.qkv).unflatten(-1, (sum(self.heads), HEAD_DIM))
        return qkv.split(self.heads, dim=1)


class TinyModel:
    """Two attention layers between one tied embedding."""

    media = None
    pools_last = False

    def __init__(self, attention: type[ReferenceAttention] = ReferenceAttention) -> None:
        self.provider = attention(
            AttentionSpec(
                num_heads=HEADS,
                num_kv_heads=KV_HEADS,
                head_dim=HEAD_DIM,
                dtype=torch.float32,
                kv_dtype=torch.float32,
                page_size=PAGE,
                scale=HEAD_DIM**-0.5,
                max_length=MAX_LENGTH,
                max_rows=64,
                max_tokens=512,
            ),
            HostDevice(),
        )
        draw = torch.Generator().manual_seed(0)
        self.embedding = torch.randn(VOCAB, SIZE, generator=draw)
        self.places = torch.randn(MAX_LENGTH, SIZE, generator=draw) * 0.3
        self.layers = [TinyLayer(seed, self.provider) for seed in (1, 2)]
        self.fails = False
        self.poison: int | None = None

    def forward(self, ids_T, batch):
        if self.fails:
            raise MemoryError("no room for the forward pass")
        x_TD = self.embedding[ids_T] + self.places[batch.positions_T]
        for layer in self.layers:
            q, k, v = layer.split(x_TD)
            view = batch.groups[layer.group]
            layer.provider.write(k, v, layer.kv, view)
            out_TD = layer.provider.run(q, layer.kv, view).flatten(1) @ layer.out
            x_TD = x_TD + layer.ranks.all_reduce(out_TD)
        if self.poison is not None:
            x_TD = x_TD.masked_fill((ids_T == self.poison).unsqueeze(1), torch.nan)
        return x_TD

    def logits(self, hidden_SD):
        return hidden_SD @ self.embedding.T

    scores = logits

    def pool(self, hidden_TD, batch, rows_P):
        ends_P = batch.query_starts_R1[1:].long()[rows_P] - 1
        return hidden_TD[ends_P]

    def pool_tokens(self, hidden_SD, *, is_score):
        return self.logits(hidden_SD)[:, :2] if is_score else hidden_SD

    def naive(self, ids: list[int]):
        """Logits of every position of one request, without pages. [T, V]"""
        x_TD = self.embedding[ids] + self.places[: len(ids)]
        for layer in self.layers:
            q, k, v = (x.transpose(0, 1) for x in layer.split(x_TD))
            out = torch.nn.functional.scaled_dot_product_attention(
                q[None], k[None], v[None], is_causal=True, enable_gqa=True
            )
            x_TD = x_TD + out[0].transpose(0, 1).flatten(1) @ layer.out
        return x_TD @ self.embedding.T


@dataclass
class Job:
    """A request as the driver sees it."""

    prompt: list[int]
    max_outputs: int = 8
    params: dict = field(default_factory=dict)
    score_from: int | None = None
    outputs: list[int] = field(default_factory=list)
    logprobs: list = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    is_done: bool = False
    slot: int = -1
    pages: list[int] = field(default_factory=list)
    computed: int = 0
    known: int = 0

    def admit(self) -> Admit:
        history = self.prompt + self.outputs
        return Admit(
            slot=self.slot,
            length=0,
            num_outputs=len(self.outputs),
            max_outputs=self.max_outputs,
            history=history,
            num_prompt=len(self.prompt),
            **self.params,
        )


class Driver:
    """Plans steps for jobs on one runner, with chunks and steps in flight as told."""

    def __init__(self, runner: TorchRunner, *, chunk: int = STEP_TOKENS) -> None:
        self.runner = runner
        self.chunk = chunk
        self.free_pages = list(range(1, runner.limits.groups[0].num_pages))
        self.page_size = runner.limits.groups[0].page_tokens
        self.free_slots = list(range(runner.limits.num_slots))
        self.step = 0
        self.slots: list[int] = []
        self.plans: list[StepPlan] = []
        self.leaving: list[int] = []

    def run(self, *jobs: Job, retract_at: int | None = None, max_steps: int = 200) -> None:
        """Compute all jobs together until they are done."""
        flight: list = []
        waiting = list(jobs)
        while not all(job.is_done for job in jobs):
            assert self.step < max_steps, "jobs do not end"
            plan = self._plan(waiting, [j for j in jobs if j.slot >= 0 and not j.is_done])
            if plan is not None:
                flight.append((self.runner.launch(plan), {j.slot: j for j in jobs if j.slot >= 0}))
            if flight and (plan is None or len(flight) >= self.runner.limits.depth):
                handle, owners = flight.pop(0)
                self._settle(self.runner.result(handle), owners)
            if retract_at is not None and self.step == retract_at:
                while flight:
                    handle, owners = flight.pop(0)
                    self._settle(self.runner.result(handle), owners)
                for job in jobs:
                    if not job.is_done and job.slot >= 0:
                        self._release(job)
                        waiting.append(job)
                retract_at = None
        while flight:
            handle, owners = flight.pop(0)
            self._settle(self.runner.result(handle), owners)

    def _plan(self, waiting: list[Job], running: list[Job]) -> StepPlan | None:
        admits = []
        while waiting and self.free_slots:
            job = waiting.pop(0)
            job.slot, job.computed = self.free_slots.pop(0), 0
            job.known = len(job.prompt) + len(job.outputs)
            admits.append(job.admit())
            running.append(job)
        columns, ids, appends = [], [], ([], [], [], [])
        budget = self.chunk
        for job in running:
            if budget == 0 or job.computed >= len(job.prompt) + job.max_outputs - 1:
                continue
            is_host = job.computed < job.known
            query = min(budget, job.known - job.computed) if is_host else 1
            budget -= query
            end = job.computed + query
            score = 0
            if is_host:
                tokens = job.prompt + job.outputs
                extra = 0
                if job.score_from is not None and not job.outputs:
                    last = end + (end < job.known)
                    score = max(0, last - max(job.score_from, job.computed + (job.computed > 0), 1))
                    extra = int(score > 0 and end < job.known)
                ids += tokens[job.computed : end + extra]
            while len(job.pages) * self.page_size < end:
                job.pages.append(self.free_pages.pop(0))
                for column, value in zip(
                    appends, (0, job.slot, len(job.pages) - 1, job.pages[-1]), strict=True
                ):
                    column.append(value)
            source = FROM_HOST if is_host else FROM_DEVICE
            columns.append((job.slot, query, end, source, int(end >= job.known), score))
            job.computed = end
        leave, self.leaving = self.leaving, []
        if not columns and not leave:
            return None
        rows = Rows(*(list(c) for c in zip(*columns, strict=True))) if columns else Rows(*[[]] * 6)
        is_steady = not ids and not admits and rows.slots == self.slots
        self.slots = rows.slots
        self.step += 1
        plan = StepPlan(
            step=self.step,
            rows=rows,
            host_ids=ids,
            leave=leave,
            admit=admits,
            append=PageAppends(*appends),
            steady=is_steady,
            tree=None if is_steady else TreeNodes(),
        )
        self.plans.append(plan)
        return plan

    def _settle(self, result: StepResult, owners: dict[int, Job]) -> None:
        ids = iter(result.ids)
        for slot, count, done in zip(result.slots, result.counts, result.done, strict=True):
            job = owners[slot]
            job.outputs += [next(ids) for _ in range(count)]
            if done and not job.is_done:
                job.is_done = True
                self._release(job)
        for entry in result.logprobs:
            owners[entry.slot].logprobs.append(entry)
        for fault in result.faults:
            owners[fault.slot].faults.append(fault.message)

    def _release(self, job: Job) -> None:
        self.leaving.append(job.slot)
        self.free_slots.append(job.slot)
        self.free_pages += job.pages
        job.slot, job.pages = -1, []
        self.slots = []


def make_runner(
    model: TinyModel,
    device: HostDevice | None = None,
    *,
    depth: int = 1,
    captures: bool = False,
    group: Group | None = None,
    max_drafts: int = 0,
    drafter: Drafter | None = None,
    kinds: tuple[str, ...] = ("full",),
) -> TorchRunner:
    device = device or HostDevice()
    num_pages = SLOTS * MAX_LENGTH // PAGE + 1
    return TorchRunner(
        device,
        model_parts(model, device, group or SingleRank(), drafter),
        limits=RunnerLimits(
            num_slots=SLOTS,
            max_step_tokens=STEP_TOKENS,
            max_length=MAX_LENGTH,
            vocab_size=VOCAB,
            depth=depth,
            groups=[PageGroup(kind, PAGE, 1, num_pages) for kind in kinds],
            max_drafts=max_drafts,
        ),
        sizes=PaddedSizes(64, 16),
        captures=captures,
    )


def model_parts(
    model: TinyModel, device: HostDevice, ranks: Group, drafter: Drafter | None = None
) -> ModelParts:
    return ModelParts(
        model=model,
        layers=model.layers,
        groups=[Retention("full")],
        resolver=Resolver(OpRegistry(), device),
        ranks=ranks,
        dtype=torch.float32,
        hidden_size=SIZE,
        drafter=drafter,
    )


def naive_outputs(model: TinyModel, job: Job) -> list[int]:
    """Draw the outputs of ``job`` one by one from dense logits, in plain Python arithmetic."""
    outputs: list[int] = []
    p = job.params
    while len(outputs) < job.max_outputs:
        logits = model.naive(job.prompt + outputs)[-1].clone()
        for token in range(VOCAB):
            count = outputs.count(token)
            if count or token in job.prompt:
                factor = p.get("repetition_penalty", 1.0)
                logits[token] = (
                    logits[token] / factor if logits[token] > 0 else logits[token] * factor
                )
            logits[token] -= count * p.get("frequency_penalty", 0.0)
            logits[token] -= (count > 0) * p.get("presence_penalty", 0.0)
        for token, bias in zip(p.get("bias_ids", []), p.get("biases", []), strict=True):
            logits[token] += bias
        if len(outputs) < p.get("min_outputs", 0):
            logits[p.get("stop_ids", [])] = -torch.inf
        outputs.append(_naive_draw(logits, p, len(outputs)))
        if outputs[-1] in p.get("stop_ids", []):
            break
    return outputs


def _naive_draw(logits, p: dict, index: int) -> int:
    if p.get("temperature", 0.0) == 0 or p.get("top_k", -1) == 1:
        return int(logits.argmax())
    probs = (logits / p["temperature"]).softmax(-1)
    if p.get("top_k", -1) > 0:
        probs = torch.where(probs >= probs.sort(descending=True).values[p["top_k"] - 1], probs, 0)
    ranked, order = probs.sort(descending=True, stable=True)
    kept = torch.zeros_like(probs)
    total = 0.0
    for prob, token in zip(ranked.tolist(), order.tolist(), strict=True):
        if total < p.get("top_p", 1.0) and prob >= p.get("min_p", 0.0) * ranked[0]:
            kept[token] = prob
        total += prob
    number = uniform(torch.tensor([p.get("seed", 0)]), torch.tensor([index])).item()
    sums = kept.cumsum(0)
    return min(int((sums <= number * sums[-1]).sum()), int(kept.nonzero().max()))


@dataclass
class Kit:
    """What a test needs, in one hand."""

    model: TinyModel
    runner: Callable[..., TorchRunner] = make_runner
    parts: Callable[..., ModelParts] = model_parts
    job: type[Job] = Job
    driver: type[Driver] = Driver

    def serve(self, *jobs: Job, **options) -> list[list[int]]:
        """Serve ``jobs`` together and return their outputs."""
        chunk = options.pop("chunk", STEP_TOKENS)
        retract_at = options.pop("retract_at", None)
        runner = make_runner(self.model, **options)
        Driver(runner, chunk=chunk).run(*jobs, retract_at=retract_at)
        return [job.outputs for job in jobs]

    def naive(self, job: Job) -> list[int]:
        return naive_outputs(self.model, job)


@pytest.fixture
def kit() -> Kit:
    return Kit(TinyModel())


@pytest.fixture
def static_kit() -> Kit:
    """With attention that can be captured whatever the rows are."""
    return Kit(TinyModel(StaticAttention))


@pytest.fixture
def tape_device() -> type[TapeDevice]:
    return TapeDevice


@pytest.fixture
def no_sync() -> type[NoSync]:
    return NoSync
