"""Traffic for the service, over public interfaces: imports nothing from `deployments`, but for `loadgen.model`."""
