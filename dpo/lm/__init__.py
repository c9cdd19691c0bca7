"""Sequences of tokens -> log-probs, by any causal language model. Knows no pair, no loss, no configuration."""
