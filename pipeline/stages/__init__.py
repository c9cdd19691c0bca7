"""A stage is a function from artifacts to an artifact; jobs, preflight, contents and overlap are parts of stages."""
