"""What a run is asked to do: the traffic, where it goes, and when its result is not to be believed."""

import os
import secrets
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from loadgen.traffic import Traffic

HANDLE = "handle:"
CacheState = Literal["fresh", "cold", "warm", "as-is"]


KEY_VARIABLE = "INTENTS_API_KEY"
"""The variable with the API key of a service that asks for one. No field: reports repeat every field."""


class LoadError(Exception):
    """A run cannot start or go on; the message is the one line its user reads."""


class Load(BaseModel):
    """One run's settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: str = Field(
        default="http://127.0.0.1:8000", description="Service address, or handle:APPLICATION of a Ray cluster."
    )
    api_path: str = Field(default="/api/v1/intents", description="Where the calls stand below the address.")
    traffic: Traffic
    workers: int = Field(default=2, ge=1, le=64, description="Processes that send.")
    timeout_s: float = Field(default=30.0, gt=0, le=600, description="Time an answer may take.")
    max_lag_ms: float = Field(
        default=1.0, gt=0, description="The run is invalid when the p99 of the send lag is over it."
    )
    max_in_flight: int = Field(
        default=10_000, ge=1, description="Calls under way at once; beyond it calls are not sent."
    )
    cache_state: CacheState | None = Field(
        default=None,
        description="What the cache holds at the start. fresh: the texts are ones nobody has sent; cold: purged first;"
        " warm: all texts sent once first; as-is: whatever it holds.",
    )
    no_store: bool = Field(
        default=False, description="Ask that no answer be looked up or kept (`Cache-Control: no-store`)."
    )
    metrics_url: str | None = Field(
        default=None, description="The server's counters; /metrics of an HTTP target when absent."
    )
    settle_s: float = Field(default=2.5, ge=0, description="Quiet time after which the server's counts have arrived.")

    @field_validator("target")
    @classmethod
    def _knows_the_scheme(cls, target: str) -> str:
        if not target.startswith(("http://", "https://", HANDLE)) or target == HANDLE:
            raise ValueError(f"target is {target!r}; give http://HOST:PORT, https://HOST:PORT or {HANDLE}APPLICATION")
        return target.rstrip("/")

    @model_validator(mode="after")
    def _starts_as_the_texts_allow(self) -> Self:
        traffic = self.traffic
        if self.cache_state == "fresh" and not self._generated:
            raise ValueError("texts of a corpus or trace may have been sent before: start cold, warm or as-is")
        if self.cache_state == "warm" and traffic.texts == "unique":
            raise ValueError("unique texts come once, no cache can be warm for them: start fresh")
        if self.no_store and self.by_handle:
            raise ValueError("a handle has no Cache-Control: give the service's http address")
        if self.no_store and self.cache_state == "warm":
            raise ValueError("nothing is kept of what is sent with no_store, no cache can be warm: start as-is")
        if self.cache_state == "cold" and self.by_handle:
            raise ValueError("a handle cannot purge the cache: start fresh, or give the service's http address")
        return self

    @property
    def _generated(self) -> bool:
        return self.traffic.corpus is None and self.traffic.trace is None

    @property
    def start(self) -> CacheState:
        """The cache state asked for, or the plainest that the texts allow: fresh where they are generated."""
        return self.cache_state or ("fresh" if self._generated else "as-is")

    def freshened(self) -> Self:
        """The same load with texts that nobody has sent; as it is, when it is not to start fresh."""
        if self.start != "fresh":
            return self
        traffic = self.traffic.model_copy(update={"text_seed": secrets.randbelow(2**31)})
        return self.model_copy(update={"traffic": traffic})

    @property
    def counters_url(self) -> str | None:
        """Where the server's counters are read; None over a handle that was given no address for them."""
        return self.metrics_url or (None if self.by_handle else f"{self.target}/metrics")

    @property
    def by_handle(self) -> bool:
        """Whether calls go over a deployment handle instead of HTTP."""
        return self.target.startswith(HANDLE)


def authorization() -> dict[str, str]:
    """The header with the API key, if there is one."""
    key = os.environ.get(KEY_VARIABLE, "").strip()
    return {"Authorization": f"Bearer {key}"} if key else {}
