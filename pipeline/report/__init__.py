"""The output of a run for people: the terminal, summary.json, curves, answers, the model card."""
