"""The verbs of the command line, in the order in which help lists them."""

from pipeline.run import STAGES

VERBS = ["run", *STAGES, "doctor", "sweep", "compare", "init", "chat", "push", "config", "cache"]
