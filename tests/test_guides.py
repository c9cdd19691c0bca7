"""The guides in examples/guides/ name what exists, and leave nothing out of what they list."""

import dataclasses
import json
import math
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import transformers

from dpo import LOSSES
from dpo.text.pairs import read_pairs
from pipeline import Config
from pipeline.config.losses import MixedLoss
from pipeline.config.policy import Adapter
from pipeline.models.cards import CARDS
from pipeline.models.room import FULL
from pipeline.models.sizing import GIB, MicroBatch, Zero, activation_bytes, estimate, from_parameters, states_bytes
from pipeline.store import run_files
from pipeline.store.tokens import row_id
from tests.keys_guide import with_lists
from tests.places import ROOT
from tests.test_contributing import missing, spans, wrong_commands
from tests.test_examples import blocks, commands

GUIDES = ROOT / "examples" / "guides"
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in sorted(GUIDES.glob("*.md"))}
OURS = [name for name in PAGES if name not in ("code", "ppo")]  # which have tests of their own
SECTIONS = "|".join(Config.model_fields)
KEY = re.compile(rf"(?<![\w./-])({SECTIONS})\.(?!yaml|toml|json|md)([a-z_0-9]+)\b(?!\()")


def keys_of_section(name):
    """The keys of a section, of all its kinds together."""
    found = Config.model_fields[name].annotation
    options = getattr(found, "__args__", ()) or (found,)
    return {key for option in options for key in option.model_fields}


# All guides


@pytest.mark.parametrize("name", PAGES)
def test_prose_has_lines_of_at_most_120_characters(name):
    lines = [line for line in PAGES[name].splitlines() if not line.startswith("|")]
    assert [line for line in lines if len(line) > 120] == []


@pytest.mark.parametrize("name", OURS)
def test_a_guide_names_places_and_commands_that_exist(name):
    typed = [line for line in commands(PAGES[name]) if line.startswith(("ray-align", "pytest", "python -m"))]
    assert wrong_commands("".join(f"`{line}`\n" for line in typed)) == []
    assert [place for place in missing(PAGES[name]) if "/" in place] == []  # my.toml is the reader's own


@pytest.mark.parametrize("name", PAGES)
def test_a_guide_links_to_files_that_exist(name):
    prose = re.sub(r"^```.*?^```", "", PAGES[name], flags=re.M | re.S)
    links = re.findall(r"\]\(([^)#]+?)(?:#[\w-]+)?\)", prose)
    assert [link for link in links if "://" not in link and not (GUIDES / link).exists()] == []


@pytest.mark.parametrize("name", PAGES)
def test_a_link_to_a_heading_has_one(name):
    links = re.findall(r"\]\(([\w-]*)(?:\.md)?#([\w-]+)\)", PAGES[name])
    assert [(page, anchor) for page, anchor in links if anchor not in anchors(PAGES[page or name])] == []


def anchors(text):
    """The headings as GitHub names them in links."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_a_guide_says_first_who_should_read_it(name):
    first, second, *_ = [line for line in PAGES[name].splitlines() if line]
    assert first.startswith("# ")
    assert second.startswith("For everybody who")


def test_the_index_has_a_line_for_every_guide():
    lines = re.findall(r"^- \[([\w-]+)\.md\]\(([\w-]+)\.md\): ", PAGES["README"], re.M)
    assert sorted(lines) == [(name, name) for name in sorted(PAGES) if name != "README"]


@pytest.mark.parametrize("name", OURS)
def test_a_guide_names_keys_that_exist(name):
    files = vars(run_files).values()
    found = [match for span in spans(PAGES[name]) if span not in files for match in KEY.findall(span)]
    assert [f"{section}.{key}" for section, key in found if key not in keys_of_section(section)] == []


@pytest.mark.parametrize("name", OURS)
def test_configurations_in_a_guide_load(name, tmp_path):
    """What a piece of one leaves out is added."""
    for number, block in enumerate(blocks(PAGES[name], "toml")):
        path = tmp_path / f"{number}.toml"
        rest = "" if "[data]" in block else '[data]\ntrain = "pairs.jsonl"\n'
        rest += "" if "[policy]" in block else '[policy]\nkind = "huggingface"\npath = "model"\n'
        path.write_text(f"{block}\n{rest}", encoding="utf-8")
        Config.load(str(path))


# Data and losses


def rows_of(text):
    """The rows of the JSON blocks, also those that are broken into lines."""
    decoder, rest, rows = json.JSONDecoder(), "".join(blocks(text, "json")).strip(), []
    while rest:
        row, end = decoder.raw_decode(rest)
        rows, rest = [*rows, row], rest[end:].strip()
    return rows


def test_every_row_of_the_guide_is_read_as_the_same_pair():
    rows = rows_of(PAGES["data"])
    assert len(rows) == 9
    for row in rows:
        (pair,) = read_pairs(row)
        texts = [side if isinstance(side, str) else side[-1]["content"] for side in pair[:3]]
        assert [text.strip() for text in texts] == ["Name a prime.", "7", "8"]


def table(text, heading):
    """The rows of the tables below a heading, as cells."""
    part = re.split(r"^## ", text.partition(f"\n## {heading}\n")[2], flags=re.M)[0].replace("\\|", " ")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"^\|.*\|$", part, re.M)]
    return [row for row in rows if not set(row[0]) <= {"-"}]


def test_every_loss_has_its_line():
    rows = [row for row in table(PAGES["losses"], "The table") if row[0].startswith("`")]
    assert sorted(row[0].strip("`") for row in rows) == sorted(LOSSES)
    for kind, _, paper in rows:
        assert all(number in LOSSES[kind.strip("`")].__doc__ for number in re.findall(r"arxiv.org/abs/([\d.]+)", paper))


def test_every_option_of_a_loss_has_its_line():
    options = {name.strip("`") for name, *_ in table(PAGES["losses"], "Options") if re.fullmatch(r"`\w+`", name)}
    kinds = [kind for kind in Config.model_fields["loss"].annotation.__args__ if kind is not MixedLoss]
    assert options - {"divergence"} == {key for kind in kinds for key in kind.model_fields} - {"kind", "divergence"}


def test_the_program_in_the_guide_to_losses_gives_what_its_equation_says(capsys):
    (program,) = blocks(PAGES["losses"], "python")
    exec(program, {})
    h = (-3.0 - -4.0) - (-5.0 - -4.5)
    printed = [float(number) for number in re.findall(r"tensor\(\[([\d.]+)\]\)", capsys.readouterr().out)]
    assert printed == pytest.approx([math.log(1 + math.exp(-0.1 * h)), 1 - 0.1 * h], abs=1e-4)


# Configuration


def test_the_keys_are_those_of_the_program():
    """Else run `python -m tests.keys_guide`."""
    page = PAGES["configuration"]
    assert with_lists(page) == page
    keys = set(re.findall(r"^- \*\*`(\w+)`\*\*", page, re.M))
    assert keys == {key for name in Config.model_fields for key in keys_of_section(name)} | set(Adapter.model_fields)


# What a run leaves, and results


def test_all_that_a_run_leaves_has_its_line():
    """In its folder, in the workspace, in a row of metrics.jsonl, and in a row of the evaluation."""
    page, written = PAGES["run-folder"], (ROOT / "tests" / "e2e" / "fixtures" / "written.json").read_text("utf-8")
    paths = [Path(name).parts for name in json.loads(written)["exact"] if name.startswith(("run/", "workspace/"))]
    named = {name for row in table(page, "The run's folder") for name in re.findall(r"`([^`]+?)/?`", row[0])}
    kept = {name for row in table(page, "The workspace") for name in re.findall(r"`([^`]+?)/?`", row[0])}
    files = {value for name, value in vars(run_files).items() if name.isupper()}
    assert {parts[1] for parts in paths if parts[0] == "run"} <= named
    assert {parts[1] for parts in paths if parts[0] == "workspace"} <= kept
    assert files - named == {run_files.WINDOWS, run_files.ANSWERS, run_files.MODEL, run_files.ATTEMPTS}
    assert {name for name in named if name.startswith("perf/")} == in_code(r'"(perf/\w+)"', "pipeline/worker/*.py")
    assert in_code(r'"((?:rewards|logps)/\w+)"', "dpo/metrics.py") <= named
    sides = in_code(r'"((?:policy|reference)_(?:chosen|rejected))"', "pipeline/models/measure.py")
    assert len(sides) == 4 and sides <= named


def in_code(pattern, paths):
    return {found for path in ROOT.glob(paths) for found in re.findall(pattern, path.read_text(encoding="utf-8"))}


def test_every_count_of_the_summary_has_its_line():
    named = {name for row in table(PAGES["run-folder"], "The run's folder") for name in spans(row[0])}
    found = in_code(r'"((?:pairs|sequences|loss|weights|eval|rejected|peak)_\w+)": ', "pipeline/stages/*.py")
    found |= in_code(r'"(\w+)": ', "pipeline/report/summary.py") | {"seconds", "steps"}
    assert found - {"peak_bytes", "eval_fraction"} <= named  # which are of other tables


def test_every_dated_result_is_listed():
    links = dict(re.findall(r"^\[([\w-]+)\]: (\S+)$", PAGES["results"], re.M))
    there = {path.stem for path in (ROOT / "examples" / "results").glob("*.md")}
    assert {row[0].strip("[]") for row in table(f"\n## All\n{PAGES['results']}", "All")} - {"file"} == there
    assert links == {name: f"../results/{name}.md" for name in there}


def test_every_benchmark_is_listed():
    rows = {row[0].strip("`") for row in table(PAGES["results"], "To measure again")} - {"benchmark"}
    folder = ROOT / "examples" / "benchmarks"
    programs = {path.stem for path in folder.glob("*.py") if "__main__" in path.read_text(encoding="utf-8")}
    assert rows == programs | {"gpu"}


# Memory


def fits(parameters, gpus, card, stage, tokens, checkpointing):
    batch = MicroBatch.of(tokens, 256.0, 256.0, 256.0)
    zero = Zero(stage, gpus, overlap=stage == 3)
    memory = estimate(from_parameters(parameters), zero, batch, checkpointing)
    return memory.total <= FULL * CARDS[card].memory


def memory_rows(columns):
    """The rows of one of the two tables of the section, which have different numbers of columns."""
    return [row for row in table(PAGES["models"], "Memory") if len(row) == columns and row[0][0].isdigit()]


@pytest.mark.parametrize("row", memory_rows(6), ids=" ".join)
def test_the_tokens_that_fit_are_those_of_the_estimate(row):
    parameters, gpus, card, stage, *tokens = row
    job = float(parameters), int(gpus), card, int(stage)
    for checkpointing, text in zip((False, True), tokens, strict=True):
        most = int(text.removesuffix(" or more").replace(",", ""))
        assert fits(*job, most, checkpointing)
        assert fits(*job, 2 * most, checkpointing) is text.endswith("more")


@pytest.mark.parametrize("row", memory_rows(4), ids=" ".join)
def test_the_parts_of_the_memory_are_those_of_the_estimate(row):
    parameters, states, *slopes = (float(cell) for cell in row)
    shape = from_parameters(parameters)
    assert states == pytest.approx(states_bytes(parameters, Zero(1, 1)) / GIB, abs=0.05)
    for checkpointing, slope in zip((False, True), slopes, strict=True):
        few, many = (
            activation_bytes(shape, MicroBatch.of(n, 256.0, 256.0, 256.0), checkpointing) for n in (1000, 2000)
        )
        assert slope == pytest.approx((many - few) / GIB, abs=0.005)


# TRL


def fields_named(heading):
    """What the first cells of a table below a heading of the third rank name."""
    part = PAGES["coming-from"].partition(f"\n### {heading}\n")[2].partition("\n#")[0]
    return [name for cell in re.findall(r"^\| ([^|]*) \|", part, re.M) for name in re.findall(r"`(\w+)`", cell)]


def test_every_field_of_trls_config_has_its_line():
    trl = pytest.importorskip("trl")
    common = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
    own = {field.name for field in dataclasses.fields(trl.DPOConfig)} - common
    assert sorted(fields_named("Every field of DPOConfig's own")) == sorted(own)
    named = fields_named("The commonest fields of TrainingArguments")
    assert len(named) == len(set(named)) > 30
    assert set(named) <= common


def test_the_losses_of_trl_are_named():
    pytest.importorskip("trl")
    from tests.dpo.test_trl_losses import TRL_LOSSES

    part = PAGES["coming-from"].partition("TRL's names of losses are ours:")[2].partition(".")[0]
    assert sorted(re.findall(r"`(\w+)`", part)) == sorted(TRL_LOSSES)
    assert set(TRL_LOSSES) <= set(LOSSES)


def test_the_programs_that_read_a_runs_folder_do_so(tmp_path, monkeypatch):
    folder = tmp_path / "runs" / "my-run"
    (folder / "evaluation").mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 1, "eval/loss": 0.6}\n', encoding="utf-8")
    (folder / "evaluation" / "manifest.json").write_text("{}", encoding="utf-8")
    pq.write_table(pa.table({"row_id": [row_id(1, 5, 2)]}), folder / "evaluation" / "pairs-000000.parquet")
    monkeypatch.chdir(tmp_path)
    metrics, evaluation, *_ = blocks(PAGES["run-folder"], "python")
    seen = {}
    exec(metrics, seen)
    exec(evaluation, seen)
    assert seen["losses"] == [(1, 0.5)]
    assert (seen["file"], seen["row"], seen["copy"]) == (1, 5, 2)
