"""The stages: each a function from artifacts to an artifact. The only folder that imports ray."""
