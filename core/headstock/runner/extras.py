"""Tables that only some requests need, made when the first of them comes: penalties and biases.

Shapes: S slots and the null slot, V token ids, B biases a request can have.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from headstock.plugins.device import Device
from headstock.runner.mail import Mail
from headstock.runner.rows import has_penalties
from headstock.wire.steps import Admit

MAX_BIASES = 1024
"""Biased ids a request can have, as the API allows them."""


class PenaltyTable:
    """What the slots' requests have in their prompts and outputs.

    Attributes:
        output_counts_SV: int32.
        prompt_mask_SV: bool.
    """

    def __init__(self, device: Device, num_slots: int, vocab_size: int) -> None:
        shape = (num_slots + 1, vocab_size)
        self.output_counts_SV = device.empty(shape, torch.int32).zero_()
        self.prompt_mask_SV = device.empty(shape, torch.bool).zero_()

    def reset(self, slot: int, history: Tensor, num_prompt: int) -> None:
        """Let ``slot`` have ``history``, prompt then outputs. int64, on the device. [tokens]"""
        counts_V, mask_V = self.output_counts_SV[slot], self.prompt_mask_SV[slot]
        counts_V.zero_()
        mask_V.zero_()
        mask_V.index_fill_(0, history[:num_prompt], value=True)
        outputs = history[num_prompt:]
        counts_V.index_add_(0, outputs, torch.ones_like(outputs, dtype=torch.int32))


class BiasTable:
    """What is added to logits of the slots' requests; id 0 and 0.0 where there is nothing.

    Attributes:
        ids_SB: int64.
        biases_SB: float32.
    """

    def __init__(self, device: Device, num_slots: int) -> None:
        self.ids_SB = device.empty((num_slots + 1, MAX_BIASES), torch.int64).zero_()
        self.biases_SB = device.empty((num_slots + 1, MAX_BIASES), torch.float32).zero_()


class Extras:
    """The tables, and their upkeep at admission.

    Attributes:
        penalties: None until a request has penalties.
        biases: None until a request has biases.
    """

    def __init__(self, device: Device, mail: Mail, num_slots: int, vocab_size: int) -> None:
        self._device = device
        self._num_slots = num_slots
        self._vocab_size = vocab_size
        self._mail = mail
        self.penalties: PenaltyTable | None = None
        self.biases: BiasTable | None = None

    def admit(self, admit: Admit) -> None:
        """Enter what the request needs; a row that needs none is left as it is."""
        if has_penalties(admit):
            if self.penalties is None:
                self.penalties = PenaltyTable(self._device, self._num_slots, self._vocab_size)
            history = self._mail.send(np.array(admit.history, np.int64))
            self.penalties.reset(admit.slot, history, admit.num_prompt)
        if admit.bias_ids:
            if self.biases is None:
                self.biases = BiasTable(self._device, self._num_slots)
            ids = np.zeros(MAX_BIASES, np.int64)
            biases = np.zeros(MAX_BIASES, np.float32)
            ids[: len(admit.bias_ids)] = admit.bias_ids
            biases[: len(admit.biases)] = admit.biases
            self.biases.ids_SB[admit.slot].copy_(self._mail.send(ids))
            self.biases.biases_SB[admit.slot].copy_(self._mail.send(biases))

    @staticmethod
    def num_bytes(num_slots: int, vocab_size: int) -> int:
        """Return the bytes that the tables take once requests need all of them."""
        return (num_slots + 1) * (vocab_size * (4 + 1) + MAX_BIASES * (8 + 4))
