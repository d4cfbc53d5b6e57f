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
    kv_dtype: Literal["auto", "float32", "float16", "bfloat16", "int8"] = "auto"
    """Of cached keys and values. auto: the activations'; float16 where those are float32 and the
    weights are quantised, which costs less than the weights' own rounding. int8: half the memory
    of float16, with a scale for each token and head; the xeon backend's kernels read such pages,
    others leave them to the reference."""
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
    policy: Literal["fcfs", "lpm", "priority"] = "fcfs"
    """Order of waiting requests: first come, longest cached prefix, or the request's priority."""
    max_queued_requests: Positive = 2048
    """Requests that may wait; past it the answer is 429 with Retry-After."""
    max_queued_tokens: Positive = 4_000_000
    """Prompt tokens that may wait, likewise."""
    overlap: bool | None = None
    """Plan a step while the one before runs; the device's choice when not set."""


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
    """File with one API key a line, as KEY or NAME:ROLE:KEY with the role user or admin; every
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
    """Largest request body; past it the answer is 413. Bytes."""
    max_connections: Positive = 4096
    """Connections at once; past it an idle one makes room, or the answer is 503. Some more are let
    in for probes. The limit on open files may leave room for fewer."""
    cors_origin: list[str] = []
    """Origins whose pages may use the server from a browser, such as https://chat.example; may be
    given several times. `*`: every page; set keys then."""
    drain_timeout_s: Seconds = 30.0
    """On SIGTERM: how long open streams may go on. Seconds."""
    restart_limit: NotNegative = 5
    """Engine restarts within ten minutes before the server gives up and exits."""
    metrics_alias: Literal["none", "sglang"] = "none"
    """Export the metrics under SGLang's names too, for existing dashboards."""


class LogSettings(Settings, frozen=True, kw_only=True):
    """What is written to the log."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe lines to write. Prompts and outputs are never logged above debug."""
    log_format: Literal["text", "json"] = "text"
    """text for people, json for machines: one object a line."""


class EngineSettings(Settings, frozen=True, kw_only=True):
    """All that an engine process is told."""

    model: ModelSettings = ModelSettings()
    device: DeviceSettings = DeviceSettings()
    cache: CacheSettings = CacheSettings()
    scheduler: SchedulerSettings = SchedulerSettings()
    parallel: ParallelSettings = ParallelSettings()
    log: LogSettings = LogSettings()


class ServeSettings(EngineSettings, frozen=True, kw_only=True):
    """All that ``headstock serve`` is told."""

    server: ServerSettings = ServerSettings()
