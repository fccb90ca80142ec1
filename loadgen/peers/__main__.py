"""`python -m loadgen.peers`."""

from loadgen.cli import run_app
from loadgen.peers.cli import app

if __name__ == "__main__":  # worker processes import this file under another name
    run_app(app, "python -m loadgen.peers")
