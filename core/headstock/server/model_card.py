"""What the server says of the model that it serves, and the defaults that come with it."""

from __future__ import annotations

import msgspec


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """The served model.

    Attributes:
        name: What clients call it.
        model_path: Where it came from: a folder, a file or a name.
        max_length: Longest request, prompt and output. Tokens.
        vocab_size: Ids the model has.
        eos_ids: Ids that end a request, unless it ignores them.
        sampling_defaults: Values by ``SamplingParams`` field, from ``generation_config.json``;
            OpenAI routes start from them.
        created: When it was loaded. Seconds since 1970.
    """

    name: str
    model_path: str
    max_length: int
    vocab_size: int
    eos_ids: list[int]
    sampling_defaults: dict[str, float] = {}
    tokenizer_path: str = ""
    model_type: str = ""
    architectures: list[str] = []
    dtype: str = ""
    quantization: str = ""
    created: int = 0
