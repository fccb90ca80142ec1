"""The service's metrics as Ray exposes them, summed over the nodes.

Apart from `runtime`: only an ingress scrapes, and aiohttp is a tenth of what any other replica would take to start.
"""

import asyncio

import aiohttp
import ray

from deployments.core.errors import Unavailable
from deployments.core.exposition import sum_expositions

SCRAPE_TIMEOUT_S = 2.0


async def scrape_nodes() -> bytes:
    """The service's metrics summed over every replica on every node, as each node's metrics agent has them.

    What replicas count reaches their agent once every `metrics_report_interval_ms` of Ray (10 s unless set, 1 s under
    `intents up`).

    Raises:
        Unavailable: an agent did not answer (503). A sum without it would look like counters that were reset.
    """
    nodes = await asyncio.to_thread(ray.nodes)
    agents = [
        f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics" for node in nodes if node["Alive"]
    ]
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=SCRAPE_TIMEOUT_S)) as session:
        texts = await asyncio.gather(*(_scrape(session, agent) for agent in agents))
    return await asyncio.to_thread(sum_expositions, texts)


async def _scrape(session: aiohttp.ClientSession, agent: str) -> str:
    try:
        async with session.get(agent, raise_for_status=True) as response:
            return await response.text()
    except (aiohttp.ClientError, TimeoutError) as error:
        raise Unavailable(f"the metrics agent {agent} did not answer") from error
