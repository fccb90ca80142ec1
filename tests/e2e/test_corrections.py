"""Corrections over real HTTP, asked for at each ingress replica's own port, past the proxy."""

from loadgen.corrections import Plan, observe_all
from tests.service import Service


async def test_ten_corrections_show_on_every_replica_within_250_ms_and_nothing_else_after_them(service: Service):
    """The model is asked anew meanwhile and afterwards: what it says is kept, and never served."""
    replicas = service.replica_urls()
    seen = await observe_all(service.url, replicas, Plan(count=10, rate=0, hold_s=0.5))
    shown_ms = [each.shown_ms for sightings in seen for each in sightings]

    assert len(replicas) == 2
    assert len(shown_ms) == 20
    assert all(each is not None and each <= 250 for each in shown_ms), shown_ms
    assert sum(each.others for sightings in seen for each in sightings) == 0
