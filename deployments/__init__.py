"""intentgraph: an intent-classification service for prompts, built as a Ray Serve deployment graph."""
