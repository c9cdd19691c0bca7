"""[data] and [tokenizer]: where the pairs come from, and how they become token ids."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.config.section import Section

Verdict = Literal["index", "negative-is-a", "positive-is-a"] | dict[str, Literal["a", "b", "tie"]]


class Source(Section):
    """A data source with settings of its own."""

    path: str
    """Path, pattern, URI or Hub name, as in `data.train`."""
    weight: float = Field(default=1.0, gt=0, le=16)
    """Times that each row is used per epoch: 2 uses every row twice, 0.25 uses a quarter of the rows, the same in every
    epoch."""
    split: str = "train"
    """Split to read, for a data set on the Hub, or a folder whose files are named by splits."""
    name: str | None = None
    """Configuration name, for a Hub data set that has several."""
    columns: dict[str, str] | None = None
    """Column names of this source, in place of `data.columns`."""
    verdict: Verdict | None = None
    """Meaning of its winners, in place of `data.verdict`."""


COLUMNS = ("prompt", "chosen", "rejected", "system", "tools", "conversations", "completions", "scores")
COLUMNS += ("ranks", "response_a", "response_b", "winner", "instruction", "input", "history")


class Data(Section):
    """Preference pairs: their sources, their largest lengths, and which of them are dropped."""

    train: str | Source | list[str | Source]
    """Training pairs: a file, folder, pattern (*.jsonl), s3:// or gs:// URI, Hub name, table { path, weight, split,
    name, columns }, or a list of these. Formats: JSONL, JSON, CSV (each also .gz, .zst), Parquet, Arrow."""
    eval: str | float | Source | None = None
    """Held-out pairs: one such source, or a fraction (between 0 and 1) of the prompts of `train`. A hash selects the
    prompts, so no prompt is on both sides."""
    columns: dict[str, str] = Field(default={})
    """Your column names, where they differ: { prompt = "question", chosen = "answers.best" }. A dot reaches into an
    object, or by index into a list: "answers.0"."""
    verdict: Verdict | None = None
    """Meaning of a winner that is no word, in rows with two answers a and b: { "1" = "a", "0" = "b" } (also "tie"),
    "index" (0 is a, or the first of several answers), "negative-is-a" or "positive-is-a" (by its sign; 0 is a tie).
    Unset: words and names of models are understood, numbers are refused."""
    ignore: list[str] = Field(default=[])
    """Columns that are knowingly not read. Others that may change the text, and that nobody reads, are refused; the
    rest is counted."""
    scored: Literal["all", "last"] = "all"
    """Turns of an answer that are scored: all of the assistant's, or its last. Turns with weight 0 never are."""
    strings: Literal["as-is", "messages"] | None = None
    """How rows of plain strings are read: "as-is" joins prompt and answer as they are, "messages" makes the prompt one
    turn of the user and the answer one of the assistant. Unset: as-is, but as messages where other rows of the file are
    messages or the prompt is a transcript of Human and Assistant, if the tokenizer has a chat template."""
    max_length: int = Field(default=1024, ge=2)
    """Maximum number of tokens of prompt and completion together."""
    max_prompt_length: int | None = Field(default=None, ge=1)
    """Maximum number of tokens of a prompt. Under keep_end a longer prompt loses its beginning; otherwise the pair is
    rejected."""
    max_completion_length: int | None = Field(default=None, ge=1)
    """Maximum number of tokens of a completion. A longer completion loses its end; under drop the pair is rejected."""
    truncation: Literal["keep_start", "keep_end", "drop"] = "keep_start"
    """Treatment of pairs above `max_length`: keep_start cuts the end of the completions, keep_end cuts the beginning of
    the prompt if that suffices, drop rejects the pair."""
    pairing: Literal["best_worst", "all"] = "best_worst"
    """How a row with several scored answers becomes pairs: best against worst, or every answer against every
    lower-scored one."""
    margin: float = Field(default=0.0, ge=0)
    """Difference in score that the two answers of such a pair must exceed, in units of your scores."""
    duplicates: Literal["keep", "drop"] = "keep"
    """Repeated pairs: keep every copy, or drop all but the first."""
    contradictions: Literal["keep", "drop"] = "keep"
    """Pairs that also occur with chosen and rejected swapped: keep all of them, or drop all of them."""
    max_rejected_fraction: float = Field(default=0.05, ge=0, le=1)
    """Share of the rows (0 to 1) that may be unusable; above it the run stops. Ties, and pairs dropped by `duplicates`
    or `contradictions`, do not count."""

    @model_validator(mode="after")
    def _consistent(self) -> Data:
        if isinstance(self.eval, float) and not 0 < self.eval < 1:
            raise ValueError(f"data.eval as a fraction must lie between 0 and 1, it is {self.eval}")
        sources = self.train if isinstance(self.train, list) else [self.train]
        if not sources:
            raise ValueError("data.train = []: name at least one file")
        if isinstance(self.eval, Source) and self.eval.weight != 1.0:
            raise ValueError(f"data.eval.weight = {self.eval.weight}: held-out rows count once; leave it out")
        for columns in (self.columns, *(s.columns or {} for s in (*sources, self.eval) if isinstance(s, Source))):
            for name in columns:
                if name not in COLUMNS:
                    raise ValueError(f"data.columns.{name}: a column must be one of {', '.join(COLUMNS)}")
        for key in ("max_prompt_length", "max_completion_length"):
            value = getattr(self, key)
            if value is not None and value >= self.max_length:
                raise ValueError(f"data.{key} = {value} never applies: data.max_length is {self.max_length}")
        return self


class Tokenizer(Section):
    """The tokenizer and its chat template."""

    path: str | None = None
    """Folder, Hub name, or "bytes". Unset: the policy's own tokenizer, or "bytes" for x-transformers."""
    eos_token: str | None = None
    """End token; replaces the tokenizer's own. Required if the tokenizer has none."""
    chat_template: str | None = None
    """"chatml", or the path of a Jinja file. Unset: the tokenizer's own template."""
    template_options: dict[str, Any] = Field(default={})
    """Values that the template may read, for example { date_string = "26 Jul 2024", enable_thinking = false }."""
