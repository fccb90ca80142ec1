"""The servers compared with this service: programs that stand alone, each run in an environment of its own.

Run one by hand from the folder above: `python -m servers.fastapi_service --port 9000 …`.
"""
