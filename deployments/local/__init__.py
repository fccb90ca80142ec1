"""One machine, one command: what `intents up` starts, watches and stops.

    supervisor  the order of things: stores, Ray, graph, serving, and back
    plan        the Serve configuration and the stores a run needs
    preflight   what would make a start fail, said before anything starts
    environment the variables the Ray processes run with, each with its reason
    stores      the two Valkey servers, kept running
    node        the Ray node, an ordinary one-machine cluster
    serve_api   Serve's REST interface at the dashboard
    rollout     deploying the graph and waiting until it answers
    processes   finding and ending exactly what a run started
    instance    where a run's state is kept, and who holds it
    control     starting in the background, stopping, asking how it is
    progress    what the user sees meanwhile

It starts and stops processes and knows nothing of intents. A cluster of several machines uses none of it.
"""
