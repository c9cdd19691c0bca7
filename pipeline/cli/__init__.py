"""The command line: one parser for each verb, and what the verb calls."""

from pipeline.cli.command_line import main

__all__ = ["main"]
