"""What is true without Ray: keys, cache policy, coalescing, batching, the model, the feedback log, metrics names."""
