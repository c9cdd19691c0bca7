"""Files: artifacts, the cache of reference log-probs, rows of data. No ray, no torch."""
