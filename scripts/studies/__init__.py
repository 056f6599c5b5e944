"""Many training runs for one question: the studies of docs/results.md and the paper's tables."""
