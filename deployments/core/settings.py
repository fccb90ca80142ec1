"""How the service behaves: one value for each thing an operator may turn.

How many replicas, CPUs and GPUs there are is not here: that is Serve's, in `serve_config.yaml`. Precedence:
`args:` of the Serve configuration, then the environment, then the default written here. The README's settings table is
compared with this class by a test.
"""

from typing import Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Behaviour of the graph. Frozen; picklable, so that it can be bound into deployments; its repr shows no secret."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    redis_url: SecretStr | None = Field(default=None, validation_alias="REDIS_URL")
    """Prediction store, `redis://…`. Secret, because it may carry a password."""
