"""The whole graph on one screen, and the only place with `.bind()`.

    HTTP ── HAProxy ── Ingress ×n ── look up ──▶ Cache ×m ── Redis (predictions)
                         │   └────── miss ─────▶ Model ×k   (CPU or GPU, dynamic batching, autoscaled)
                         └────────── feedback ─▶ Feedback ×1 ── Redis (the log)
                                                                  ▲ followed by every Ingress: corrections

How many of each, and on what, is `serve_config.yaml`'s. What they do is `Settings`'.
"""

from ray import serve
from ray.serve import Application

from deployments.cache import Cache
from deployments.core.settings import Settings
from deployments.feedback import Feedback
from deployments.ingress import Ingress
from deployments.model import Model


def build(settings: Settings) -> Application:
    """The application `intents`. Serve makes `settings` from the configuration's `args:`.

    Raises:
        StartupError: no prediction store is named, or a store's URL is malformed.
    """
    settings.require_stores()
    return serve.deployment(serve.ingress()(Ingress), name="Ingress").bind(
        settings,
        cache=serve.deployment(Cache).bind(settings),
        model=serve.deployment(Model).bind(settings),
        feedback=serve.deployment(Feedback).bind(settings),
    )
