"""Files between stages: artifacts, tokens, the cache of log-probs, epochs in windows. Imports no ray, no torch."""
