"""From sources to batches: where rows come from, which make a batch, which tokens are masked, what tensors result."""
