"""Where the project and the real data beside it are."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"  # real pairs and tokenizers, where a checkout has them
