"""The doctor: every planted fault is found by its name, and nothing on a clean set."""

import gzip
import json
import random
import re

import pytest
import torch

from dpo.text.tokenizers import CHATML, byte_tokenizer
from pipeline.config import Config
from pipeline.doctor.findings import Finding, graded, plain, worst
from pipeline.doctor.page import write_page
from pipeline.doctor.visit import examine
from pipeline.errors import InputError
from pipeline.models.room import NO_SINGLE_CHANGE
from tests.pipeline.files import config_file, jsonl
from tests.pipeline.models.shapes import LLAMA_1B
from tests.pipeline.worker.small_run import LLAMA, model_folder
from tests.places import DATA

WORDS = ("amber", "birch", "cedar", "delta", "ember", "flint", "grove", "heath", "inlet", "juniper", "kelp", "larch")


def sentence(draw, least=6, most=12):
    return " ".join(draw.choices(WORDS, k=draw.randint(least, most)))


def clean_rows(count=120, seed=0):
    """Each prompt once, sides of the same lengths on the whole, a blank before each answer."""
    draw = random.Random(seed)
    return [
        {
            "prompt": f"Question {seed}-{i}: {sentence(draw)}?",
            "chosen": f" {sentence(draw)}",
            "rejected": f" {sentence(draw)}",
        }
        for i in range(count)
    ]


def as_messages(row, system=None):
    before = [{"role": "system", "content": system}] if system else []
    sides = {side: [{"role": "assistant", "content": row[side].strip()}] for side in ("chosen", "rejected")}
    return {"prompt": [*before, {"role": "user", "content": row["prompt"]}], **sides}


def chat(folder, template=CHATML):
    """A tokenizer to which ChatML's markers are tokens, with this template."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"], "eos_token": "<|im_end|>"})
    tokenizer.save_pretrained(folder / "chat")
    return {"path": str(folder / "chat"), "chat_template": template}


def examined(folder, train, held_out=None, tokenizer=None, **data):
    """The report on these rows, or this file, as the command makes it."""
    folder.mkdir(exist_ok=True)
    paths = {"train": train if not isinstance(train, list) else jsonl(folder / "train.jsonl", train)}
    if held_out is not None:
        paths["eval"] = jsonl(folder / "eval.jsonl", held_out)
    settings = {"max_length": 512, **data}
    train_config = settings.pop("train_config", {})
    path = config_file(
        folder,
        run={"dir": str(folder)},
        data={**{name: str(path) for name, path in paths.items()}, **settings},
        tokenizer={"path": "bytes", **(tokenizer or {})},
        train=train_config,
    )
    return examine(Config.load(path))


def found(report):
    return {finding.name: finding for finding in report.findings}


# The data


def test_a_clean_set_has_nothing(tmp_path):
    strings = examined(tmp_path / "strings", clean_rows(), clean_rows(20, seed=1))
    assert strings.findings == [] and strings.worst is None
    train, held_out = ([as_messages(row) for row in rows] for rows in (clean_rows(), clean_rows(20, seed=1)))
    assert examined(tmp_path / "messages", train, held_out, chat(tmp_path)).findings == []


def planted():
    """name of the finding -> (rows to add or a change to all, how many pairs have the fault)."""
    rows = clean_rows(12, seed=7)
    turned = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows[:3]]
    return {
        "rejected-not-JSON": ([], 0),
        "rejected-same-sides": ([{**row, "rejected": row["chosen"]} for row in rows[:4]], 4),
        "rejected-empty-side": ([{**row, "chosen": "  "} for row in rows[:2]], 2),
        "rejected-no-pair": ([{"text": "x"}], 1),
        "rejected-tie": ([{"prompt": "p", "response_a": "a", "response_b": "b", "winner": "tie"}], 1),
        "rejected-too-long": ([{**rows[0], "prompt": "long " * 200}], 1),
        "duplicates": ([rows[0], rows[0], rows[0], rows[1], rows[1]], 3),
        "contradictions": ([*rows[:3], *turned], 6),
        "double-end": ([{**rows[0], "chosen": " well<eos> then"}], 1),
        "control-tokens": ([{**rows[0], "prompt": "a <pad> b"}], 1),
        "truncation": ([{**rows[0], "chosen": " and" * 200}], 1),
    }


@pytest.mark.parametrize("name", [name for name in planted() if name != "rejected-not-JSON"])
def test_a_planted_fault_is_found(tmp_path, name):
    rows, number = planted()[name]
    report = examined(tmp_path / "set", [*clean_rows(), *rows])
    finding = found(report)[name]
    assert finding.number == number
    assert finding.examples and all("train.jsonl line " in str(example) for example in finding.examples)
    others = set(found(report)) - {name}
    assert others <= {"control-tokens", "truncation"}  # which an end token in the text, and a long answer, are as well


def test_all_planted_faults_at_once(tmp_path):
    rows = [*clean_rows(400), *(row for rows, _ in planted().values() for row in rows)]
    path = jsonl(tmp_path / "all.jsonl", rows)
    with path.open("ab") as file:
        file.write(b"{broken\n")
    assert set(planted()) <= set(found(examined(tmp_path / "set", path)))


def test_the_boundary(tmp_path):
    """GPT-2 has one token for "amber"; here answers begin without a blank."""
    folder = DATA / "tokenizers" / "gpt2"
    if not folder.is_dir():
        pytest.skip(f"no tokenizer in {folder}")
    rows = [{**row, "prompt": row["prompt"] + " un", "chosen": "happy" + row["chosen"]} for row in clean_rows(4)]
    report = examined(tmp_path / "set", [*clean_rows(), *rows], tokenizer={"path": str(folder)})
    assert [(f.name, f.number) for f in report.findings] == [("boundary", 4)]


def with_begin(folder):
    """A byte-level tokenizer that puts <s> before every text."""
    from tokenizers import processors

    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    begin = ("<s>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[begin])
    tokenizer.save_pretrained(folder)
    return {"path": str(folder)}


def test_begin_tokens(tmp_path):
    tokenizer = with_begin(tmp_path / "tokenizer")
    assert examined(tmp_path / "clean", clean_rows(), tokenizer=tokenizer).findings == []
    rows = clean_rows()
    twice = [{**row, "prompt": f"<s>{row['prompt']}"} for row in rows[:2]]
    inside = [{**row, "chosen": f" <s>{row['chosen']}"} for row in rows[:3]]
    report = found(examined(tmp_path / "set", [*rows[5:], *twice, *inside], tokenizer=tokenizer))
    assert (report["double-begin"].number, report["inner-begin"].number) == (2, 3)
    assert report["double-begin"].severity == report["inner-begin"].severity == "error"
    messages = {**tokenizer, "chat_template": CHATML.replace("<|", "<").replace("|>", ">")}
    report = examined(tmp_path / "chat", [as_messages(row) for row in rows], tokenizer=messages)
    assert [(f.name, f.number) for f in report.findings] == [("missing-begin", len(rows))]


def test_unknown_tokens(tmp_path):
    from tests.dpo.text.test_tokenize import merging_tokenizer

    tokenizer = merging_tokenizer()
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"a": 0, "b": 1, "c": 2, "ab": 3, "<s>": 4, "</s>": 5, "<unk>": 6}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b")], unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    draw = random.Random(0)
    rows = [{side: "".join(draw.choices("abc", k=20)) for side in ("prompt", "chosen", "rejected")} for _ in range(60)]
    strange = [{**rows[0], "prompt": "xyzxyz"}]
    report = found(examined(tmp_path / "set", [*rows, *strange], tokenizer={"path": str(tmp_path / "tokenizer")}))
    assert report["unknown-tokens"].number == 1


def test_length_gives_the_answer_away(tmp_path):
    rows = [{**row, "chosen": row["chosen"] + " amber birch cedar delta ember flint"} for row in clean_rows()]
    report = found(examined(tmp_path / "set", rows))
    assert set(report) == {"length-bias"}
    assert report["length-bias"].severity == "warning"
    assert report["length-bias"].share > 0.9


def test_held_out_prompts_that_training_has(tmp_path):
    rows, held_out = clean_rows(), clean_rows(20, seed=1)
    same = [{**rows[0], "chosen": " another one"}]
    near = [{**row, "prompt": row["prompt"].replace("?", "!")} for row in rows[10:13]]
    report = found(examined(tmp_path / "set", rows, [*held_out, *same, *near]))
    assert set(report) == {"prompts-on-both-sides", "near-duplicates"}
    assert (report["prompts-on-both-sides"].number, report["near-duplicates"].number) == (1, 3)
    assert "eval.jsonl line 22" in str(report["near-duplicates"].examples[0])
    assert "train.jsonl line 11" in str(report["near-duplicates"].examples[0])


def test_settings_that_cost(tmp_path):
    config = {"micro_batch_tokens": 150, "share_prompts": False}
    report = found(examined(tmp_path / "set", clean_rows(), train_config=config))
    assert set(report) == {"above-budget", "sharing-off"}


@pytest.mark.skipif(bool(torch.cuda.device_count()), reason="there is a GPU here")
def test_a_gpu_that_only_training_needs_is_a_note(tmp_path):
    """Of a run on this machine alone."""
    jsonl(tmp_path / "train.jsonl", clean_rows())
    asked = {"data": {"train": "train.jsonl"}, "cluster": {"gpus_per_worker": 1}, "reference": {"gpus_per_actor": 1}}
    path = config_file(tmp_path, **asked, tokenizer={"path": "bytes"})
    finding = found(examine(Config.load(path)))["missing-gpus"]
    assert finding.severity == "note" and "gpus_per_worker asks for 1 GPU(s)" in finding.detail
    assert "missing-gpus" not in found(examine(Config.load(path), "H100"))


def test_a_tokenizer_too_large_for_the_model(tmp_path):
    """What the run's preflight would refuse is a finding here."""
    path = config_file(
        tmp_path,
        run={"dir": str(tmp_path)},
        data={"train": str(jsonl(tmp_path / "a.jsonl", clean_rows()))},
        tokenizer={"path": "bytes"},
        policy={"kind": "huggingface", "config": {"model_type": "llama", "vocab_size": 100}},
    )
    finding = found(examine(Config.load(path)))["model"]
    assert finding.severity == "error" and "258 tokens" in finding.detail


# Templates

TEMPLATES = {
    "template-not-prefix-stable": (
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant><think>\n\n</think>\n\n{% endif %}",
        {},
    ),
    "template-date": ("Today is {{ strftime_now('%d %b %Y') }}.\n" + CHATML, {}),
    "template-refuses-system": (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
        "{% endfor %}" + CHATML,
        {"system": "Be brief."},
    ),
    "template-drops-system": (
        CHATML.replace("{% for message in messages %}", "{% for message in messages if message['role'] != 'system' %}"),
        {"system": "Be brief."},
    ),
    "template-strips": (CHATML.replace("{{ message['content'] }}", "{{ message['content'] | trim }}"), {}),
    "template-asks-nothing": (CHATML.partition("{% if add_generation_prompt")[0], {}),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_bad_template_is_found_and_named(tmp_path, name):
    template, row = TEMPLATES[name]
    rows = [as_messages(r, **row) for r in clean_rows()]
    report = examined(tmp_path / "set", rows, tokenizer=chat(tmp_path, template))
    names = set(found(report))
    assert name in names
    assert {n for n in names if n.startswith("template")} == {name}
    refused = {"template-not-prefix-stable", "template-refuses-system"}
    assert ("rejected-template" in names) == (name in refused)


def test_a_template_that_drops_thoughts_from_earlier_turns(tmp_path):
    """As Qwen's: it is no fault where answers have one turn."""
    template = CHATML.replace(
        "{{ message['content'] }}",
        "{% if loop.last %}{{ message['content'] }}{% else %}{{ message['content'].split('</think>')[-1] }}{% endif %}",
    )
    rows = [as_messages(row) for row in clean_rows()]
    tokenizer = chat(tmp_path, template)
    report = examined(tmp_path / "one", rows, tokenizer=tokenizer)
    assert [(f.name, f.severity) for f in report.findings] == [("template-rewrites-turns", "note")]
    more = [{**row, "chosen": [*row["chosen"], {"role": "user", "content": "And?"}, *row["chosen"]]} for row in rows]
    report = examined(tmp_path / "two", more, tokenizer=tokenizer)
    assert found(report)["template-rewrites-turns"].severity == "warning"


def test_a_date_that_an_option_fixes_is_none(tmp_path):
    guard = "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    guard += "{{ date_string }}\n"
    rows = [as_messages(row) for row in clean_rows()]
    tokenizer = chat(tmp_path, guard + CHATML)
    assert "template-date" in found(examined(tmp_path / "free", rows, tokenizer=tokenizer))
    fixed = {**tokenizer, "template_options": {"date_string": "26 Jul 2024"}}
    assert examined(tmp_path / "fixed", rows, tokenizer=fixed).findings == []


def test_a_template_that_ignores_tools(tmp_path):
    tools = [{"type": "function", "function": {"name": "look_up"}}]
    rows = [{**as_messages(row), "tools": tools} for row in clean_rows()]
    tokenizer = chat(tmp_path)
    assert found(examined(tmp_path / "set", rows, tokenizer=tokenizer))["template-ignores-tools"].number == 120
    shown = {**tokenizer, "chat_template": "{% if tools %}{{ tools | tojson }}{% endif %}" + CHATML}
    assert examined(tmp_path / "shown", rows, tokenizer=shown).findings == []


def test_a_turn_that_ends_with_another_token(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    rows = [as_messages(row) for row in clean_rows()]
    report = examined(tmp_path / "set", rows, tokenizer={"path": str(tmp_path / "tokenizer")})
    assert [f.name for f in report.findings] == ["template-other-end"]


def test_a_template_that_drops_calls_of_tools(tmp_path):
    call = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "f"}}]}
    before = [call, {"role": "tool", "content": "7"}]
    rows = [{**row, "chosen": [*before, *row["chosen"]]} for row in map(as_messages, clean_rows())]
    report = found(examined(tmp_path / "set", rows, tokenizer=chat(tmp_path)))
    assert report["template-drops-calls"].number == 120
    shown = "{{ message['content'] }}{{ message['tool_calls'] | tojson if message['tool_calls'] }}"
    template = CHATML.replace("{{ message['content'] }}", shown)
    assert "template-drops-calls" not in found(examined(tmp_path / "shown", rows, tokenizer=chat(tmp_path, template)))


def test_markers_that_are_ordinary_text(tmp_path):
    """A tokenizer that does not know ChatML spells its markers out."""
    rows = [as_messages(row) for row in clean_rows()]
    report = examined(tmp_path / "set", rows, tokenizer={"chat_template": "chatml"})
    assert [f.name for f in report.findings] == ["markers-not-tokens"]
    assert "'<|im_start|>' is 12 tokens" in report.findings[0].detail


def test_a_column_that_nobody_reads(tmp_path):
    rows = [{**row, "notes": f"Note {number}", "id": str(number)} for number, row in enumerate(clean_rows())]
    one = found(examined(tmp_path / "a", rows))["columns-unread"]
    assert (one.severity, one.number) == ("warning", 120)
    assert "notes (120 rows)" in one.detail and 'data.ignore = ["notes"]' in one.fix
    assert [str(example) for example in one.examples] == ["train.jsonl line 1: notes = 'Note 0'"]
    assert found(examined(tmp_path / "b", rows, ignore=["notes"])) == {}


def test_messages_beside_strings(tmp_path):
    """A system text makes messages of a string row, which then looks unlike its neighbours."""
    rows = [{**row, "system": "Be brief."} if i % 2 else row for i, row in enumerate(clean_rows())]
    report = examined(tmp_path / "set", rows, tokenizer=chat(tmp_path))
    assert (found(report)["mixed-forms"].number, found(report)["mixed-forms"].share) == (60, 0.5)


def test_a_damaged_file_is_an_error_however_few_rows_it_counts_as(tmp_path):
    whole = gzip.compress("\n".join(json.dumps(row) for row in clean_rows(2000)).encode())
    path = tmp_path / "cut.jsonl.gz"
    path.write_bytes(whole[:-2000])
    report = found(examined(tmp_path / "set", path))
    assert report["rejected-damaged-file"].severity == "error"
    assert report["rejected-damaged-file"].share < 0.01


# Real pairs


def real(name):
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"no {path}")
    return path


def test_tulu_repeats_and_contradicts_itself(tmp_path):
    """Counted in test_repeats.py from the rows themselves: 35 repeat another, 31 have a counterpart."""
    path = real("tulu_human_pairs.jsonl.gz")
    report = examined(tmp_path / "set", path, tokenizer={"path": str(DATA / "tokenizers" / "gpt2")}, max_length=2048)
    assert (found(report)["duplicates"].number, found(report)["contradictions"].number) == (35, 31)
    assert set(found(report)) == {"duplicates", "contradictions", "length-bias"}


def test_qa_feedback_has_its_boundaries_and_shares_its_prompts(tmp_path):
    path = real("qa_feedback.jsonl.gz")
    report = examined(tmp_path / "set", path, tokenizer={"path": str(DATA / "tokenizers" / "gpt2")}, max_length=2048)
    assert found(report)["boundary"].number > 50
    assert report.work.share(report.work.grouped) == pytest.approx(0.80, abs=0.005)
    assert report.work.share(report.work.shared) == pytest.approx(0.44, abs=0.005)


# The job


def job(folder, changes, card=None):
    """The report on a Llama of 1.2 billion parameters, whose weights nobody needs."""
    llama = {**LLAMA_1B, "model_type": "llama"}
    path = config_file(
        folder,
        run={"dir": str(folder)},
        data={"train": str(jsonl(folder / "train.jsonl", clean_rows())), "max_length": 512},
        tokenizer={"path": "bytes"},
        policy={"kind": "huggingface", "config": llama},
        train={"dtype": "bfloat16"},
    )
    return examine(Config.load(path, changes), card)


def test_a_job_that_does_not_fit_its_card_is_a_finding(tmp_path):
    report = job(tmp_path, ["cluster.gpus_per_worker=1"], "T4")
    finding = found(report)["memory"]
    assert finding.severity == "error" and "There are 14.9 GiB: T4 (16 GB)" in finding.detail
    assert finding.fix == NO_SINGLE_CHANGE["states"]
    assert "on 1 T4 at 3 TFLOP/s each (40% of the peak)" in report.facts["job"]["time"]
    four = ["cluster.gpus_per_worker=1", "cluster.workers=4", "train.micro_batch_tokens=4096"]
    assert found(job(tmp_path, [*four, "deepspeed.stage=2"], "L4"))["memory"].severity == "warning"
    assert found(job(tmp_path, four, "L4")) == {}  # where the stage is open, that of this card is chosen


def test_a_job_that_fits_its_card_is_none(tmp_path):
    report = job(tmp_path, ["cluster.gpus_per_worker=1"], "H100")
    assert found(report) == {}
    assert report.facts["job"]["memory per GPU"].endswith(" of 74.5 GiB: H100 (80 GB)")
    assert report.facts["job"]["advised ZeRO stage"].startswith("1, ")
    assert "on 1 H100 at 396 TFLOP/s each (40% of the peak)" in report.facts["job"]["time"]


def test_a_card_is_for_a_run_with_gpus_also_where_there_are_none(tmp_path):
    report = job(tmp_path, [], "H100")
    assert report.facts["job"]["memory per GPU"].endswith(" of 74.5 GiB: H100 (80 GB)")
    assert "ZeRO 1, bfloat16" in report.facts["job"]["memory per GPU"]
    report = job(tmp_path, ["cluster.gpus_per_worker=0"], "H100")  # written out: the run is to use CPUs
    assert "memory per worker" in report.facts["job"]


def test_a_folder_that_cannot_be_trained_is_a_finding(tmp_path):
    model = model_folder(tmp_path / "model", LLAMA)
    (model / "adapter_config.json").write_text("{}")
    policy = [f"policy.path={model}", "policy.config=null"]
    finding = found(job(tmp_path, policy))["model"]
    assert finding.severity == "error" and "policy.adapter.path" in finding.detail
    assert "tokenizer" not in finding.title + finding.fix


def test_settings_of_an_adapter_that_hurt_are_findings(tmp_path):
    quiet = ["policy.adapter.r=8", "train.learning_rate=5e-5"]
    assert not found(job(tmp_path, quiet)).keys() & {"reference-base", "adapter-rate", "merge-narrow", "not-served"}
    hurt = ["policy.adapter.use_dora=true", "reference.model=base", "sft.epochs=1"]
    findings = found(job(tmp_path, hurt))
    assert {"reference-base", "adapter-rate", "not-served"} <= findings.keys()
    assert "it is DoRA" in findings["not-served"].title
    assert "merge-narrow" in found(job(tmp_path, [*quiet, "export.merge=true", "export.dtype=bfloat16"]))


def test_an_adapter_leaves_more_room_and_takes_less_time(tmp_path):
    whole = job(tmp_path, ["cluster.gpus_per_worker=1"], "H100").facts["job"]
    adapter = job(tmp_path, ["cluster.gpus_per_worker=1", "policy.adapter.r=8"], "H100").facts["job"]
    gib = [float(re.search(r"about ([\d.]+) GiB", facts["memory per GPU"])[1]) for facts in (whole, adapter)]
    assert gib[1] < 0.6 * gib[0]
    pflop = [float(re.search(r"([\d.e-]+) PFLOP", facts["time"])[1]) for facts in (whole, adapter)]
    assert 0.65 < pflop[1] / pflop[0] < 0.85  # scoring included, which both do
    assert "M parameters are trained" in adapter["adapter"]


def test_without_a_card_nothing_is_compared(tmp_path):
    report = job(tmp_path, ["cluster.gpus_per_worker=1", "train.dtype=float32"])
    assert found(report).keys() == {"missing-gpus"}
    assert "--card NAME compares it with a card" in report.facts["job"]["memory per GPU"]
    assert "A100-80GB at 8 TFLOP/s each, or " in report.facts["job"]["time"]


def test_on_a_cpu_the_workers_share_this_machines_memory(tmp_path):
    finding = found(job(tmp_path, ["cluster.workers=32"]))["memory"]
    assert "memory per worker" in finding.detail and "this machine's" in finding.detail


# What is shown


def test_the_page_escapes_what_rows_hold(tmp_path):
    rows = [{**row, "chosen": " <script>alert(1)</script>"} for row in clean_rows(3, seed=5)]
    report = examined(tmp_path / "set", [*clean_rows(), *rows, *rows])
    text = write_page(report, "<b>name</b>").read_text(encoding="utf-8")
    assert "<script>" not in text and "&lt;script&gt;" in text and "&lt;b&gt;name" in text
    assert text.count("prefers-color-scheme: dark") == 1 + 5  # the style and five pictures
    assert "http" not in text.replace("http-equiv", "")  # it needs nothing beside it


def test_the_worst_counts():
    findings = [Finding("a", severity, "", "", "") for severity in ("note", "error", "warning")]
    assert worst(findings) == "error" and worst([]) is None
    assert [graded(share, 0.1, 0.5) for share in (0.05, 0.1, 0.5)] == ["note", "warning", "error"]


def test_doctor_json_can_be_read(tmp_path):
    report = examined(tmp_path / "set", [*clean_rows(), clean_rows()[0]])
    again = json.loads(json.dumps(plain(report)))
    assert again["findings"][0]["name"] == "duplicates"
    assert again["facts"]["data"]["pairs read"] == "121"


def test_the_row_of_an_example_is_a_file_and_a_line(tmp_path):
    report = examined(tmp_path / "set", [*clean_rows(), clean_rows()[0]])
    (example,) = found(report)["duplicates"].examples
    train = str(tmp_path / "set" / "train.jsonl")
    assert (example.row.file, example.row.at, example.other.at) == (train, "line 121", "line 1")
    assert plain(report)["findings"][0]["rows"] == [[train, "line 121"]]


def test_a_message_in_the_last_row_is_a_finding_where_there_is_no_template(tmp_path):
    """The first rows tell nothing of it, and the error that comes from the work keeps its class."""
    rows = [*clean_rows(24), as_messages(clean_rows(1, seed=3)[0])]
    report = examined(tmp_path / "set", rows)
    assert list(found(report)) == ["no-template"]
    assert (report.folder / "doctor.html").is_file()


@pytest.mark.parametrize("key", ["run.dir", "run.workspace"])
def test_a_folder_that_cannot_be_written_is_refused_by_its_key(tmp_path, key):
    (tmp_path / "file").write_text("in the way")
    path = config_file(tmp_path, data={"train": str(jsonl(tmp_path / "a.jsonl", clean_rows()))})
    with pytest.raises(InputError, match=f"^{key}: cannot write to .*Not a directory. Name another folder"):
        examine(Config.load(path, [f"{key}={tmp_path / 'file' / 'below'}"]))
