"""The cache deployment: cache policy and the connections to the prediction store, for many ingress replicas."""

from collections.abc import Mapping, Sequence

from deployments.core.errors import Unavailable
from deployments.core.prediction import Prediction, predictions_to_json
from deployments.core.prediction_cache import PredictionCache
from deployments.core.prediction_store import open_store
from deployments.core.rpc import Address, RpcServer
from deployments.core.settings import Settings
from deployments.logs import configure_logging
from deployments.runtime import RayMetrics, listen


class Cache:
    """Serve shell around `PredictionCache`; each call carries what gathered at an ingress replica.

    Look-ups come over a port of the replica's own, see `core.rpc`, and by handle where there is none.
    """

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc] # Serve awaits it
        configure_logging(settings.log_level)
        self._cache = PredictionCache(
            open_store(settings.predictions_url, timeout_s=1.0),
            ttl_s=settings.cache_ttl,
            ttl_jitter=settings.cache_ttl_jitter,
            timeout_s=settings.cache_timeout_ms / 1000,
            recorder=RayMetrics(),
        )
        await self._cache.ping()  # connects, so that the first look-up need not
        self._address = await listen(RpcServer(self._look_up))

    async def address(self) -> Address | None:
        """Where this replica takes look-ups; None where it takes them by handle alone."""
        return self._address

    async def _look_up(self, request: bytes) -> bytes:
        return predictions_to_json(await self.get_many(request.decode().split("\n")))

    async def get_many(self, keys: Sequence[str]) -> list[Prediction | None]:
        """The prediction of each key, in order; None for a miss.

        Raises:
            Unavailable: the store is left alone at present; so may this deployment be, until its `ping` says otherwise.
        """
        if self._cache.is_left_alone:
            raise Unavailable("the prediction store does not answer")
        return await self._cache.get_many(keys)

    async def put_many(self, predictions: Mapping[str, Prediction]) -> bool:
        """Keep predictions for their time to live; give whether the store has them."""
        return await self._cache.put_many(predictions)

    async def purge(self, keys: Sequence[str]) -> int:
        """Delete the predictions under `keys`; give how many there were."""
        return await self._cache.purge(keys)

    async def purge_all(self) -> int:
        """Delete every prediction; give how many there were."""
        return await self._cache.purge_all()

    async def ping(self) -> bool:
        """Whether the prediction store answers."""
        return await self._cache.ping()
