"""What an operator can set: one section a part, read once at the edge, never changed after.

Flags, the TOML file, environment variables and `docs/configuration.md` all come from here: the
field name is the flag (``--max-model-len``), the section and name are the file's key
(``model.max_model_len``) and the variable (``HEADSTOCK_MAX_MODEL_LEN``), and the string under a
field is its help.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Positive = Annotated[int, msgspec.Meta(ge=1)]
NotNegative = Annotated[int, msgspec.Meta(ge=0)]
Seconds = Annotated[float, msgspec.Meta(ge=0)]


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every section: immutable, by name, no unknown keys."""


class ModelSettings(Settings, frozen=True, kw_only=True):
    """Which model, and at what precision."""

    model: str = "smollm2"
    """A name that `headstock pull` knows, a Hugging Face folder, a GGUF file, or a hub id."""
    revision: str | None = None
    """Hub models: the commit, tag or branch."""
    tokenizer: str | None = None
    """Folder or tokenizer.json to use instead of the model's own."""
    chat_template: str | None = None
    """File with a Jinja chat template to use instead of the model's own."""
    reasoning_parser: str = "auto"
    """How the model marks what it thinks before it answers: think, kimi, harmony; none leaves it in
    the text. auto: as its chat template shows."""
    tool_call_parser: str = "auto"
    """How the model writes calls of functions: hermes, qwen3_xml, glm45, llama3, mistral and more;
    none leaves them in the text. auto: as its chat template shows."""
    skip_tokenizer_init: bool = False
    """Token ids in and out only; no tokenizer is loaded."""
    served_model_name: str | None = None
    """Name that clients use; the model's own when not set."""
    task: Literal["auto", "generate", "embed", "classify"] = "auto"
    """What the model is served for: text, vectors of texts, or scores of labels (rewards,
    rerankers). auto: as its files say. embed serves a decoder without its output layer."""
    pooling: Literal["auto", "last", "mean", "cls"] = "auto"
    """Embedding models: which hidden states become the vector, those of the last token, the mean of
    all, or the first. auto: as the model's files say."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Of weights and activations. auto: the checkpoint's, or what the device computes best."""
    quantization: Literal["none", "int8", "int4", "fp8"] | None = None
    """Quantise dense weights at load; none keeps a quantised checkpoint's blocks as they are."""
    load_format: Literal["auto", "dummy"] = "auto"
    """dummy: random weights of the right shapes, for benchmarks."""
    max_model_len: Positive | None = None
    """Longest request, prompt and output. Tokens. The model's own limit when not set."""
    generation_config: Literal["auto", "none"] = "auto"
    """auto: sampling defaults and EOS ids from the model's generation_config.json."""


class DeviceSettings(Settings, frozen=True, kw_only=True):
    """What computes."""

    backend: str | None = None
    """Backend to use; the best available one when not set. See `headstock backends`."""
    device_index: NotNegative = 0
    """Which of the backend's devices."""
    backend_option: list[str] = []
    """Options of the backend, as name=value; may be given several times. Its page lists them."""
    threads: NotNegative = 0
    """Host threads for computing; 0: as many as there are cores."""
    op: list[str] = []
    """Force a provider, as name=provider; may be given several times. all=reference is allowed."""
    graphs: bool = True
    """Capture steps and replay them, where the device can."""
    disable_plugin: list[str] = []
    """Plugins not to load, by entry point name."""


class CacheSettings(Settings, frozen=True, kw_only=True):
    """Memory for keys and values."""

    page_size: Positive | None = None
    """Tokens a page holds; the attention provider's choice when not set."""
    kv_dtype: Literal["auto", "float32", "float16", "bfloat16", "int8", "fp8_e4m3"] = "auto"
    """Of cached keys and values. auto: the activations'; float16 where those are float32 and the
    weights are quantised, which costs less than the weights' own rounding. int8, fp8_e4m3: half
    the memory of float16, with a scale for each token and head, of which int8 rounds finer; the
    kernels of xeon and of Triton read such pages, others leave them to the reference."""
    memory_fraction: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.9
    """Share of the free device memory that weights, pages and workspace may take together."""
    cache_tokens: Positive | None = None
    """Size the cache by tokens instead of by memory."""
    prefix_cache: bool = True
    """Share the pages of equal prefixes among requests."""
    checkpoint_tokens: Positive | None = None
    """For models with recurrent layers: keep their state each time a prompt has grown by so many
    tokens. When not set: at a prompt's end, and where a second request parts from a cached one."""


class SchedulerSettings(Settings, frozen=True, kw_only=True):
    """What a step computes and how much may wait."""

    max_running_requests: Positive | None = None
    """Requests computed at once; chosen from the device when not set."""
    chunked_prefill_size: Positive | None = None
    """Most tokens a step computes; longer prompts are computed in chunks."""
    policy: Literal["fair", "fcfs", "lpm", "priority"] = "fair"
    """Order of waiting requests: equal shares for those who send them (the holders of keys, or
    addresses), first come, longest cached prefix, or the request's priority."""
    max_queued_requests: Positive = 2048
    """Requests that may wait; past it the answer is 429 with Retry-After. A quarter more may, of
    those who have used less than others."""
    max_queued_tokens: Positive = 4_000_000
    """Prompt tokens that may wait, likewise."""
    overlap: bool | None = None
    """Plan a step while the one before runs; the device's choice when not set."""


class MediaSettings(Settings, frozen=True, kw_only=True):
    """What requests may bring of images, where the model takes any."""

    encoder_tokens: Annotated[int, msgspec.Meta(ge=16, le=1 << 20)] = 8192
    """Tokens of images whose features are kept at once; no image may have more. Tokens."""
    max_images: Positive = 32
    """Images of one request."""
    max_image_bytes: Positive = 16 * 1024 * 1024
    """Largest image file. Bytes."""
    max_image_pixels: Annotated[int, msgspec.Meta(ge=1, le=1 << 28)] = 24_000_000
    """Largest image, before it is resized for the model. Pixels."""
    max_video_frames: Positive = 64
    """Frames of one video that the model looks at, after sampling."""
    allow_media_urls: bool = False
    """Fetch images from public https addresses that requests name; else they send the bytes."""
    media_timeout_s: Annotated[float, msgspec.Meta(gt=0, le=600)] = 5.0
    """How long fetching one image may take. Seconds."""


def reserved_places(max_queued_requests: int) -> int:
    """Return how many more may wait than ``max_queued_requests``: for who has used little."""
    return max(1, max_queued_requests // 4)


class GrammarSettings(Settings, frozen=True, kw_only=True):
    """What outputs may be bound to: schemas, patterns, grammars."""

    grammar_backend: str | None = None
    """Provider that compiles grammars; the first registered one when not set. none: no grammars."""
    grammar_timeout_s: Annotated[float, msgspec.Meta(gt=0, le=600)] = 4.0
    """CPU and wall time that compiling one grammar may take, in a process of its own. Seconds."""
    grammar_memory_bytes: Positive = 512 * 1024 * 1024
    """Memory that compiling one grammar may take. Bytes."""
    grammar_workers: Positive = 2
    """Grammars compiled at once."""
    grammar_cache_bytes: Positive = 64 * 1024 * 1024
    """Memory that compiled grammars may take together; the least recently used go first. Bytes."""


class LoraSettings(Settings, frozen=True, kw_only=True):
    """LoRA adapters, one a request."""

    lora: list[str] = []
    """Adapter to serve, as name=folder, where clients name it as the model; may be given several
    times. More can be loaded while the server runs, as far as there is room for them."""
    max_loras: NotNegative | None = None
    """Adapters on the device at once: requests with others wait. When not set: 8 if --lora is
    given; else 0, and no adapter can be served."""
    max_lora_rank: Positive | None = None
    """Largest rank of an adapter; when not set: that of those given with --lora, else 16."""
    max_loaded_loras: Positive = 64
    """Adapters kept in the host's memory, from where they reach the device when they are needed."""
    lora_target_modules: list[str] = []
    """Last name of modules that adapters may have matrices of, such as q_proj; may be given several
    times. all: every linear layer. When not set: those of the adapters given with --lora, else
    all."""


class SpeculationSettings(Settings, frozen=True, kw_only=True):
    """Tokens drafted ahead, of which a step keeps those that are right. Changes no output."""

    speculation: str = "none"
    """Drafter: ngram drafts what followed when a request's last tokens occurred before, for
    outputs that repeat what is in their prompts; a plugin's; none. See docs/speculation.md."""
    num_drafts: Positive = 4
    """Tokens drafted a request and step, with a drafter; 15 at most."""

    @property
    def max_drafts(self) -> int:
        """Tokens that may be drafted a row and step; 0 without a drafter."""
        return 0 if self.speculation == "none" else self.num_drafts


class ParallelSettings(Settings, frozen=True, kw_only=True):
    """How many processes share the model."""

    tp_size: Positive = 1
    """Tensor parallel ranks: each holds a slice of every layer."""


class ServerSettings(Settings, frozen=True, kw_only=True):
    """The HTTP server."""

    host: str = "127.0.0.1"
    """Address to listen on. 0.0.0.0 is reachable from other machines: set keys then."""
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 30000
    """Port to listen on; 0: any free one."""
    api_key_file: str | None = None
    """File with one API key a line, as KEY or NAME:ROLE:KEY with the role user or admin, and what
    its holder may use (share=2 requests_per_minute=60 tokens_per_minute=100000 concurrent=8); every
    route but the probes then needs one, and control needs an admin's. Read again on SIGHUP."""
    api_keys: Annotated[list[str], msgspec.Meta(extra={"flag": False})] = []
    """API keys, from HEADSTOCK_API_KEYS, comma separated, or a file: a flag would show in `ps`."""
    allowed_host: list[str] = []
    """Name by which clients may reach the server, as in their Host header; may be given several
    times. On a loopback address localhost and the address are allowed, and no other name is: a
    web page cannot reach the server by a name of its own. Elsewhere every name is, unless some are
    given."""
    admin_host: str = "127.0.0.1"
    """Address for the routes of control, where --admin-port is set."""
    admin_port: Annotated[int, msgspec.Meta(ge=0, le=65535)] | None = None
    """Port for the routes of control; they are then gone from --port. 0: any free one."""
    max_body_bytes: Positive = 8 * 1024 * 1024
    """Largest request body; past it the answer is 413. Bytes. An eighth of it may be commas, a
    sixteenth quotes, and a thirty-second opening brackets and braces."""
    max_program_steps: Positive = 1024
    """Largest program that `/v1/programs` takes: steps and states."""
    max_program_depth: Positive = 8
    """Forks of forks, and conditions in conditions, that a program may nest."""
    max_program_tokens: Positive = 131072
    """Tokens that the gens of one program may generate together."""
    max_connections: Positive = 4096
    """Connections at once; past it an idle one makes room, or the answer is 503. Some more are let
    in for probes. The limit on open files may leave room for fewer."""
    cors_origin: list[str] = []
    """Origins whose pages may use the server from a browser, such as https://chat.example; may be
    given several times. `*`: every page; set keys then."""
    drain_timeout_s: Seconds = 30.0
    """On SIGTERM: how long open streams may go on. Seconds."""
    restart_limit: NotNegative = 10
    """Engine restarts within ten minutes before the server gives up and exits."""
    state_dir: str | None = None
    """Folder for what outlives the API process: responses that were asked to be stored, and
    streams, which then have ids by which a client resumes them. One server uses it, and only its
    user can read it. Without it responses are kept in memory."""
    stream_resume_s: Seconds = 60.0
    """With --state-dir: how long a stream runs on without its client, and is kept after its end,
    for a client that comes back. Seconds."""
    max_file_bytes: Positive = 128 * 1024**2
    """Largest file of /v1/files. Bytes."""
    state_bytes: Positive = 1024**3
    """How much is stored, with --state-dir or in memory; past it the answer to what would store
    more is 507. On disk it may take twice as much. Bytes."""
    state_key_bytes: Positive = 256 * 1024**2
    """How much is stored for one key. The oldest responses make room for new ones. Bytes."""
    metrics_alias: Literal["none", "sglang"] = "none"
    """Export the metrics under SGLang's names too, for existing dashboards."""
    request_records: NotNegative = 256
    """Last requests of each key whose times and steps `/requests` tells; never their texts. 0:
    none are kept."""
    otlp_endpoint: str | None = None
    """URL of an OpenTelemetry collector that takes traces by OTLP over HTTP, such as
    http://collector:4318/v1/traces: a trace for each request, without its text. Needs the extra
    `otel`."""
    trace_ratio: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0
    """Share of requests that are traced; of those that come as part of a trace, as that says."""


class LogSettings(Settings, frozen=True, kw_only=True):
    """What is written to the log."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe lines to write. Prompts and outputs are never logged above debug."""
    log_format: Literal["text", "json"] = "text"
    """text for people, json for machines: one object a line."""


class EngineSettings(Settings, frozen=True, kw_only=True):
    """All settings of an engine process."""

    model: ModelSettings = ModelSettings()
    device: DeviceSettings = DeviceSettings()
    cache: CacheSettings = CacheSettings()
    scheduler: SchedulerSettings = SchedulerSettings()
    grammar: GrammarSettings = GrammarSettings()
    media: MediaSettings = MediaSettings()
    lora: LoraSettings = LoraSettings()
    speculation: SpeculationSettings = SpeculationSettings()
    parallel: ParallelSettings = ParallelSettings()
    log: LogSettings = LogSettings()


class ServeSettings(EngineSettings, frozen=True, kw_only=True):
    """All settings of ``headstock serve``."""

    server: ServerSettings = ServerSettings()
