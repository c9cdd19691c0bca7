"""A stage is a function from artifacts to an artifact; jobs.py, preflight.py and overlap.py are parts of stages."""
