"""The loop of `serve`: assignment, restore, batches, commits, model swaps."""
