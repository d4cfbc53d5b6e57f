"""From logits to token ids. Shapes: S rows that sample, V token ids, B biases."""

from __future__ import annotations

import torch
from torch import Tensor

from headstock.ops import sampling, steps
from headstock.ops.offers import computes
from headstock_xeon.kernels.base import FLOAT32, Kernels
from headstock_xeon.stream import rows_of, strided


class SamplingKernels(Kernels):
    """Those that change logits work in place."""

    @computes(sampling.argmax_tokens, FLOAT32)
    def argmax_tokens(self, logits_SV: Tensor) -> Tensor:
        ids_S = self._stream.empty(logits_SV.shape[:1], torch.int64)
        self._stream.emit("argmax", *strided(logits_SV), ids_S, *logits_SV.shape)
        return ids_S

    @computes(sampling.draw_tokens, FLOAT32)
    def draw_tokens(
        self,
        logits_SV: Tensor,
        temperature_S: Tensor,
        top_k_S: Tensor,
        top_p_S: Tensor,
        min_p_S: Tensor,
        seeds_S: Tensor,
        indexes_S: Tensor,
    ) -> Tensor:
        asked = (temperature_S, top_k_S, top_p_S, min_p_S, seeds_S, indexes_S)
        settings = [each.contiguous() for each in asked]
        ids_S = self._stream.empty(logits_SV.shape[:1], torch.int64)
        self._stream.emit("draw", *strided(logits_SV), *settings, ids_S, *logits_SV.shape)
        return ids_S

    @computes(sampling.apply_penalties, FLOAT32)
    def apply_penalties(
        self,
        logits_SV: Tensor,
        output_counts_SV: Tensor,
        prompt_mask_SV: Tensor,
        repetition_S: Tensor,
        frequency_S: Tensor,
        presence_S: Tensor,
    ) -> Tensor:
        logits_SV = rows_of(logits_SV)
        known = (output_counts_SV, prompt_mask_SV, repetition_S, frequency_S, presence_S)
        known = [part.contiguous() for part in known]
        self._stream.emit("penalise", *strided(logits_SV), *known, *logits_SV.shape)
        return logits_SV

    @computes(sampling.token_logprobs, FLOAT32)
    def token_logprobs(
        self, logits_SV: Tensor, ids_S: Tensor, asked_SB: Tensor, *, k: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows, size = logits_SV.shape
        chosen_S, top_SK = self._stream.empty((rows,)), self._stream.empty((rows, k))
        top_ids_SK = self._stream.empty((rows, k), torch.int64)
        of_asked_SB = self._stream.empty(asked_SB.shape)
        found = (chosen_S, top_SK, top_ids_SK, of_asked_SB)
        asked = (ids_S.contiguous(), asked_SB.contiguous(), asked_SB.shape[1], k)
        self._stream.emit("logprobs", *strided(logits_SV), *asked, *found, rows, size)
        return found

    @computes(sampling.add_bias, FLOAT32)
    def add_bias(self, logits_SV: Tensor, ids_SB: Tensor, biases_SB: Tensor) -> Tensor:
        logits_SV = rows_of(logits_SV)
        lists = (ids_SB.contiguous(), biases_SB.contiguous(), ids_SB.shape[1])
        self._stream.emit("bias", *strided(logits_SV), *lists, logits_SV.shape[0])
        return logits_SV

    @computes(steps.apply_masks, FLOAT32)
    def apply_masks(self, logits_RV: Tensor, words_RW: Tensor) -> Tensor:
        return self._like(logits_RV, "mask", *strided(logits_RV), *strided(words_RW))
