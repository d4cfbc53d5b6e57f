"""What the server says of the model that it serves, and the defaults that come with it."""

from __future__ import annotations

from typing import Literal

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
        task: What it is served for.
        embedding_size: Elements of a vector, of a model that embeds.
        is_normalized: Whether its vectors have the length 1.
        dimensions: Sizes that its vectors may be cut to; []: any.
        prompts: Texts that go before what is embedded, by name.
        default_prompt: Name of the one that goes before inputs that name none; "": none does.
        labels: Of a model that classifies.
        is_bounded: Whether the score of its only label, or of a reranker's verdict, is made a
            probability, by the logistic function.
        verdict_ids: Of a reranker that generates: the ids that say yes and no to a query and a
            document; []: it is none.
        token_tasks: What it yields of each token of a text: ``token_embed``, ``token_classify``.
        scores_steps: Whether that is all that it yields: scores of the steps of an answer.
        step_id: Id of the token that ends such a step; None: scores are given of all tokens.
        first_id: Id of the token that begins each text, of which no vector or score is given.
        last_id: Id of the token that texts must end in, added where they do not; None: of none.
        adapter: Name of the LoRA adapter that a request is served with; "": none.
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
    task: Literal["generate", "embed", "classify"] = "generate"
    embedding_size: int = 0
    is_normalized: bool = False
    dimensions: list[int] = []
    prompts: dict[str, str] = {}
    default_prompt: str = ""
    labels: list[str] = []
    is_bounded: bool = True
    verdict_ids: list[int] = []
    token_tasks: list[str] = []
    scores_steps: bool = False
    step_id: int | None = None
    first_id: int | None = None
    last_id: int | None = None
    adapter: str = ""

    @property
    def pools(self) -> list[str]:
        """What it yields of a text instead of more text, the usual first."""
        if self.task == "generate":
            return []
        return self.token_tasks if self.scores_steps else ["pool", *self.token_tasks]
