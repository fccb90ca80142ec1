"""Traffic for the service, over public interfaces alone: imports nothing from `deployments`."""
