"""What a person looks at: the terminal, summary.json, curves, answers, the model card."""
