"""This service beside what one would use instead: the same work on the same machine in one run.

`contest` runs it, `contestants` are the services compared, `servers` are the programs of those that are not ours,
`results` is what comes of it. Every server is started by its own command; nothing of this service is imported.
"""
