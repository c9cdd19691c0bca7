"""Token sequences -> log-probs, with any causal language model. Independent of pairs, losses and configuration."""
