"""Windows of log-probs under the policy and under the reference -> preference metrics, and a row for each pair."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dpo.terms import Mixture, couples
from pipeline.store.parquet import row_groups
from pipeline.store.tokens import lists


def measure_window(item: dict[str, Any], folder: str, mixture: Mixture) -> Iterator[pa.Table]:
    """Compare one window and write `pairs-<number>.parquet`; yields the pairs and sums of its steps, as JSON.

    Args:
        item: `number` of the window, and the paths of `ours` (the policy's) and `theirs` (the reference's).
    """
    rows, sums = [], []
    # As many pairs at a time as a step has: some losses compare pairs with one another.
    for ours, theirs in zip(row_groups(item["ours"]), row_groups(item["theirs"]), strict=True):
        metrics, found = measure_step(ours, theirs, mixture)
        sums.append(metrics)
        rows.append(found)
    pairs = pa.concat_tables(rows)
    pq.write_table(pairs, Path(folder) / f"pairs-{item['number']:06}.parquet")
    yield pa.table({"number": [item["number"]], "pairs": [pairs.num_rows], "sums": [json.dumps(sums)]})


def measure_step(ours: pa.Table, theirs: pa.Table, mixture: Mixture) -> tuple[dict[str, float], pa.Table]:
    """Sums over some held-out pairs, and a row for each."""
    import torch  # imported where it is measured, not where that is asked for

    from dpo.lm.batch import ScoredTokens
    from dpo.lm.head import Logps
    from dpo.losses import PairLogps
    from dpo.step import Baseline, couple, pair_logps, preference_step

    counts, policy = (torch.from_numpy(part) for part in _values(ours))
    reference = torch.from_numpy(_values(theirs)[1]) if "chosen_logps" in theirs.column_names else None
    tokens = ScoredTokens(counts)
    sums = pair_logps(tokens, policy)
    rows = {"row_id": ours["row_id"], "policy_chosen": sums.chosen.numpy(), "policy_rejected": sums.rejected.numpy()}
    base = PairLogps(*torch.zeros(2, ours.num_rows, dtype=torch.float64))
    if reference is not None:
        base = pair_logps(tokens, reference)
        rows |= {"reference_chosen": base.chosen.numpy(), "reference_rejected": base.rejected.numpy()}
    coupling = couple(sums, base, mixture, Baseline())[0] if couples(mixture) else None
    per_token = ours.num_rows / max(1, int(counts[: ours.num_rows].sum()))
    found = preference_step(tokens, Logps(policy), reference, mixture, per_token, coupling)
    return {name: float(value) for name, value in found.metrics.items()}, pa.table(rows)


def _values(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Log-probs of a table -> scored tokens of each sequence, the chosen ones first, and all their values."""
    values = [v for side in ("chosen", "rejected") for v in lists(table[f"{side}_logps"])]
    return np.array([len(v) for v in values]), np.concatenate(values).astype(np.float32)
