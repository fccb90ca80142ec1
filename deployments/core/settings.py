"""How the service behaves: one value for each thing an operator may turn.

How many replicas, CPUs and GPUs there are is not here: that is Serve's, in `serve_config.yaml`. Precedence:
`args:` of the Serve configuration, then the environment, then the default written here. The README's settings table is
compared with this class by a test.
"""

import os
from pathlib import Path
from typing import Literal, Self
from urllib.parse import quote

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from deployments.core.access import ANYONE, LOCAL, TRUSTED_ANYONE, Caller
from deployments.core.errors import StartupError
from deployments.core.store_url import StoreUrl

DAY_S = 24 * 3600

ENVIRONMENT_NAMES = (
    "CACHE_TTL",
    "ENABLE_CACHING",
    "REDIS_URL",
    "REDIS_HOST",
    "REDIS_PORT",
    "REDIS_DB",
    "REDIS_PASSWORD",
    "FEEDBACK_REDIS_URL",
    "MODEL_ARTIFACT",
    "LOG_LEVEL",
)
"""The settings that may come from the environment, each under its own name in capitals; an empty value is no value."""


class Settings(BaseSettings):
    """Behaviour of the graph. Frozen and picklable, to be bound into deployments; its repr shows no secret."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, protected_namespaces=())

    # Stores
    redis_url: SecretStr | None = Field(
        None,
        description="Prediction store: one server, Sentinel or Redis Cluster; overrides the four parts below.",
    )
    redis_host: str | None = Field(None, description="Prediction store's host, when there is no URL.")
    redis_port: int = Field(6379, ge=1, le=65535, description="Prediction store's port, with `redis_host`.")
    redis_db: int = Field(0, ge=0, description="Prediction store's database number, with `redis_host`.")
    redis_password: SecretStr | None = Field(None, description="Prediction store's password, with `redis_host`.")
    feedback_redis_url: SecretStr | None = Field(
        None,
        description="The feedback log's store; the prediction store's URL when absent.",
    )

    # Cache
    enable_caching: bool = Field(default=True, description="Off: every answer is `bypass`, corrections are not served.")
    cache_ttl: float = Field(3600.0, gt=0, description="Seconds a prediction is kept.")
    cache_ttl_jitter: float = Field(
        0.1, ge=0, lt=1, description="Share by which each TTL varies, so that none expire together."
    )
    cache_timeout_ms: float = Field(
        100.0, gt=0, description="Time budget of one round trip to the prediction store; beyond it a miss."
    )
    lookup_timeout_ms: float = Field(
        250.0, gt=0, description="Time budget of a call to the cache deployment; beyond it a miss."
    )
    local_tier_bytes: int = Field(
        32 * 1024 * 1024, ge=0, description="Memory of each ingress replica for ready answers; 0: none are kept there."
    )
    local_tier_ttl_s: float = Field(300.0, gt=0, description="Seconds an ingress replica serves an answer from memory.")
    cache_max_group: int = Field(
        512, ge=1, le=4096, description="Most look-ups, or predictions to keep, that one round trip carries."
    )

    # Model
    model_artifact: Path | None = Field(None, description="Folder of the model artifact; the shipped one when absent.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where the encoder runs; `auto` takes CUDA when the replica has a GPU (`num_gpus`)."
    )
    runtime: Literal["auto", "onnx", "torch"] = Field(
        "auto", description="What computes the forward pass; `auto` takes the fastest on this processor, torch on CUDA."
    )
    precision: Literal["auto", "fp32", "fp16", "bf16", "int8"] = Field(
        "auto", description="Of the arithmetic; `auto` takes fp32, on CUDA fp16: what keeps to fp32's labels."
    )
    max_batch_tokens: int = Field(4096, ge=16, description="Padded tokens (longest × count) of one forward pass.")
    max_batch_size: int = Field(64, ge=1, description="Texts of one forward pass.")
    max_queue_ms: float = Field(
        150.0,
        gt=0,
        description="Milliseconds a request may expect to wait for others, beside the time of its own work; half as "
        "many under overload: where more than one call of ten was refused lately. Beyond it 429, unless one batch "
        "has room for it and all before it. Under overload who has waited for 1.5 times as long gets a 429, too, while "
        "more than one batch waits.",
    )
    max_queue_tokens: int = Field(
        65_536, ge=1, description="Tokens that may wait for a batch, whatever the time; beyond it 429."
    )
    max_waiting_requests: int = Field(
        128,
        ge=1,
        description="Requests that may wait at an ingress replica for a handle call to the model; beyond it 429.",
    )
    max_model_calls: int = Field(
        32,
        ge=1,
        description="Handle calls to the model an ingress replica keeps in flight, of small and large requests each.",
    )

    # Feedback
    feedback_timeout_s: float = Field(5.0, gt=0, description="Time budget of one write to the log; beyond it 503.")
    feedback_max_group: int = Field(256, ge=1, description="Most records one fsync covers.")
    feedback_retention_days: int = Field(30, ge=2, description="Days the log is kept; trimmed by whole days.")
    correction_ttl_s: float = Field(DAY_S, gt=0, description="Seconds a correction is served from its acceptance.")
    max_corrections: int = Field(
        100_000, ge=1, description="Corrections a replica keeps in memory; the oldest leave first."
    )
    feedback_rate_per_s: float = Field(
        100.0, gt=0, description="Feedback records a second that each API key may send; beyond it 429."
    )
    feedback_burst: int = Field(200, ge=1, description="Records a key may send at once, before that rate holds.")
    feedback_replicas_acked: int = Field(
        0, ge=0, description="Replicas of the log's store that must have received a write before it is acknowledged."
    )
    unsafe_feedback: bool = Field(default=False, description="Accept a log store that may lose what it acknowledged.")

    # Requests
    request_timeout_s: float = Field(
        30.0, gt=0, description="Time a request may take; `X-Request-Timeout-Seconds` may shorten it."
    )
    max_body_bytes: int = Field(2 * 1024 * 1024, ge=1024, description="Largest body taken; beyond it 413.")

    # Who may
    api_keys_file: Path | None = Field(
        None, description="The file of API keys; set, every call under `/api/v1/intents` needs one of them."
    )
    auth: Literal["local", "open"] = Field(
        "local", description="Without keys. `open`: serve other hosts all the same, and mean it."
    )
    apply_untrusted: bool = Field(
        default=False, description="With `auth: open`, let anybody's corrections change answers."
    )
    metrics_open: bool = Field(default=True, description="Off: `/metrics` needs a key of the scope `admin`.")

    # Logs
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Least severe line logged.")
    log_texts: bool = Field(default=False, description="Log users' texts. Off: only their lengths.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 — it would read every field's name, `DEVICE` and `AUTH` too
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments first, then the named environment variables."""
        named = {name.lower(): os.environ[name] for name in ENVIRONMENT_NAMES if os.environ.get(name)}
        return init_settings, InitSettingsSource(settings_cls, named)

    @model_validator(mode="after")
    def _corrections_within_the_log(self) -> Self:
        if self.correction_ttl_s > self.feedback_retention_days * DAY_S:
            raise ValueError(
                f"correction_ttl_s is {self.correction_ttl_s:g} s, longer than the log keeps a record; raise "
                f"feedback_retention_days ({self.feedback_retention_days})"
            )
        return self

    @property
    def predictions_url(self) -> str:
        """The prediction store's URL, with its password.

        Raises:
            StartupError: neither `redis_url` nor `redis_host` is set.
        """
        if self.redis_url:
            return self.redis_url.get_secret_value()
        if not self.redis_host:
            raise StartupError(
                "no prediction store: set REDIS_URL (for example redis://127.0.0.1:6379/0), or run `intents up`, "
                "which starts one"
            )
        password = f":{quote(self.redis_password.get_secret_value(), safe='')}@" if self.redis_password else ""
        return f"redis://{password}{self.redis_host}:{self.redis_port}/{self.redis_db}"

    @property
    def feedback_url(self) -> str:
        """The feedback log's URL, with its password; the prediction store's when it has none of its own."""
        return self.feedback_redis_url.get_secret_value() if self.feedback_redis_url else self.predictions_url

    def require_stores(self) -> None:
        """Refuse to start without stores, or with a URL that names none.

        Raises:
            StartupError: neither `redis_url` nor `redis_host` is set, or a URL is malformed.
        """
        _parsed("REDIS_URL" if self.redis_url else "redis_host", self.predictions_url)
        _parsed("FEEDBACK_REDIS_URL", self.feedback_url)

    @property
    def artifact_folder(self) -> Path:
        """The folder of the model artifact in service."""
        from deployments.core.artifact import DEFAULT_ARTIFACT

        return self.model_artifact or DEFAULT_ARTIFACT

    @property
    def keyless_caller(self) -> Caller:
        """Who calls, where there are no API keys."""
        if self.auth == "local":
            return LOCAL
        return TRUSTED_ANYONE if self.apply_untrusted else ANYONE


def _parsed(name: str, url: str) -> StoreUrl:
    try:
        return StoreUrl.parse(url)
    except StartupError as error:
        raise StartupError(f"{name} names no store: {error}") from None
