"""Answers at evaluations, on real process groups with the real DeepSpeed, against the weights that they write."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from dpo.lm.adapter_files import ALONE, Worn
from dpo.lm.models import freeze, load_model
from pipeline.errors import InputError
from pipeline.worker.answers import MOST_AT_ONCE, batches_of
from pipeline.worker.job import Job, Questions
from pipeline.worker.loop import Done, train
from tests.dpo.lm.adapters import lora, network, saved
from tests.pipeline.worker.group import Task
from tests.pipeline.worker.small_run import (
    LLAMA,
    VOCABULARY,
    X_ROTARY,
    X_TIED,
    cached,
    epochs_of,
    json_lines,
    make_job,
    make_rows,
    model_folder,
    tables,
    trained,
)

NEW, END, OF_ADAPTER = 12, 7, 23  # tokens of an answer; token ids that end some answers before others
PROMPTS = [
    list(map(int, row["prompt_ids"])) for row in make_rows(7, 2)
]  # 2 to 6 tokens: on two ranks two batches, of three and of one
QUESTIONS = Questions(list(range(100, 107)), PROMPTS, NEW, END)
OPTIONS = {"evaluate_every": 2, "best_by": "loss", "learning_rate": 2e-2}
MODELS = {"llama": LLAMA, "x-rotary": X_ROTARY, "x-tied": X_TIED}
RUNS = {
    "llama-0": ("llama", 0, {}),
    "llama-3": ("llama", 3, {}),
    "llama-0-checkpointing": ("llama", 0, {"activation_checkpointing": True}),
    "llama-3-checkpointing": ("llama", 3, {"activation_checkpointing": True}),
    "x-rotary-0": ("x-rotary", 0, {}),
    "x-rotary-3": ("x-rotary", 3, {}),
    "x-tied-3": ("x-tied", 3, {}),
    "adapter-2": ("adapter", 2, {}),
    "adapter-3": ("adapter", 3, {"activation_checkpointing": True}),
}
SILENT = ("llama-3-checkpointing", "x-rotary-0")  # which also run without a question


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    made = {name: model_folder(root / name, config) for name, config in MODELS.items()}
    return made | {"adapter": saved(network(vocab_size=VOCABULARY), root / "base")}


def pairs_of(folder: Path) -> tuple[list, list]:
    """Six steps, and the held-out pairs as one, scored by a folder's model."""
    return epochs_of(cached(folder, make_rows(24, 0)), [4] * 6, 1), tables(cached(folder, make_rows(8, 2)), [8])


@pytest.fixture(scope="module")
def runs(groups, folders, tmp_path_factory):
    """Six steps by two workers: name, or name and "silent" -> job and what its first rank returned."""
    root = tmp_path_factory.mktemp("jobs")
    drawn = lora(network(vocab_size=VOCABULARY), trained=False, target_modules="all-linear")
    worn = {"worn": Worn(str(saved(drawn, root / "drawn"))), "base": ("a digest", None)}
    data = {name: pairs_of(folder) for name, folder in folders.items()}
    tasks = {}
    for name, (model, stage, changes) in RUNS.items():
        more = {**OPTIONS, **changes, **(worn if model == "adapter" else {})}
        asked = {name: QUESTIONS._replace(eos_id=OF_ADAPTER if model == "adapter" else END)}
        asked |= {f"{name}-silent": None} if name in SILENT else {}
        for each, questions in asked.items():
            job = make_job(root / each, folders[model], data[model][0], stage, questions=questions, **more)
            tasks[each] = Task(job, *data[model])
    answers = groups.run(2, list(tasks.values()))
    assert all(isinstance(answer, Done) for answer, _ in answers), answers
    return {name: (task.job, answer) for (name, task), (answer, _) in zip(tasks.items(), answers, strict=True)}


def samples(job: Job) -> list[dict]:
    return json_lines(Path(job.logs) / "samples.jsonl")


def truth(job: Job) -> list[list[int]]:
    """What the model that a job wrote answers in a process of its own, all prompts at once."""
    folder, worn = Path(job.weights), ALONE
    if job.worn != ALONE:
        folder, worn = Path(job.model), Worn(job.weights)
    elif not (folder / "config.json").exists():
        shutil.copy(Path(job.model) / "config.json", folder)
    model = load_model(folder, torch.float32, worn=worn)
    freeze(model)
    return model.generate(PROMPTS, NEW, job.questions.eos_id, job.pad_id)


@pytest.mark.group
@pytest.mark.parametrize("name", RUNS)
def test_the_answers_at_a_step_are_those_of_its_weights(runs, name):
    job, done = runs[name]
    lines = {line["step"]: line for line in samples(job)}
    assert list(lines) == [2, 4, 6]
    assert all(line["row_ids"] == QUESTIONS.row_ids and line["max_new_tokens"] == NEW for line in lines.values())
    answers = lines[done.weights_step]["answers"]
    assert answers == truth(job)
    assert len({len(answer) for answer in answers}) > 1  # some end before others
    assert not any(job.questions.eos_id in answer for answer in answers)
    assert any(line["answers"] != answers for line in lines.values())  # so that the step matters


@pytest.mark.group
@pytest.mark.parametrize("name", SILENT)
def test_training_is_bit_for_bit_that_without_answers(runs, name):
    job, silent = (runs[each][0] for each in (name, f"{name}-silent"))
    assert not (Path(silent.logs) / "samples.jsonl").exists()
    rows = [json_lines(Path(each.logs) / "metrics.jsonl") for each in (job, silent)]
    timeless = [[{k: v for k, v in row.items() if not k.startswith("perf/")} for row in each] for each in rows]
    assert timeless[0] == timeless[1]
    ours, theirs = trained(job), trained(silent)
    assert ours.keys() == theirs.keys() and all(ours[key].equal(theirs[key]) for key in ours)


@pytest.mark.group
def test_a_job_that_goes_on_has_each_step_once_with_what_it_was_asked(groups, runs, folders, tmp_path):
    """The checkpoint is of step 3; what was answered after step 4 is answered again, and only what is asked then."""
    whole = {line["step"]: line["answers"] for line in samples(runs["llama-3"][0])}
    epochs, held_out = pairs_of(folders["llama"])
    options = OPTIONS | {"best_by": None, "checkpoint_steps": 3}
    job = make_job(tmp_path / "job", folders["llama"], epochs, 3, questions=QUESTIONS, **options)
    assert groups.run(2, [Task(job, epochs, held_out, stop_at=5)]) == [["stopped"] * 2]
    assert [line["step"] for line in samples(job)] == [2, 4]
    fewer = QUESTIONS._replace(row_ids=QUESTIONS.row_ids[4:], prompts=PROMPTS[4:])
    ((done, _),) = groups.run(2, [Task(replace(job, questions=fewer), epochs, held_out)])
    assert isinstance(done, Done)
    lines = {line["step"]: (line["row_ids"], line["answers"]) for line in samples(job)}
    assert lines == {2: (QUESTIONS.row_ids, whole[2]), 4: (fewer.row_ids, whole[4][4:])}


def without_memory(job, epochs, held_out):
    """Train; on rank 1 there is no memory for the second token of several answers. Returns the error."""
    attend = torch.nn.functional.scaled_dot_product_attention

    def attention(query, key, *args, **options):
        if dist.get_rank() == 1 and query.shape[0] > 1 and query.shape[-2] < key.shape[-2]:
            raise torch.OutOfMemoryError("CUDA out of memory (pretended)")
        return attend(query, key, *args, **options)

    torch.nn.functional.scaled_dot_product_attention = attention
    try:
        train(job, torch.device("cpu"), lambda epoch, first: iter(epochs[epoch]), lambda: iter(held_out))
    except InputError as error:
        return str(error)
    finally:
        torch.nn.functional.scaled_dot_product_attention = attend


@pytest.mark.group
def test_without_memory_for_answers_all_ranks_say_what_to_lower(groups, model, epochs, held_out, tmp_path):
    job = make_job(tmp_path / "job", model, epochs, 3, questions=QUESTIONS, **OPTIONS)
    groups.run_afresh(2, [])
    group = groups.open.pop(2)
    try:
        said = group.call(without_memory, job, epochs, held_out, seconds=60)
    finally:
        group.close()
    assert said[0] == said[1]
    assert said[0].startswith("Memory ran out while 7 held-out prompts were answered after step 2.")
    assert "evaluate.max_new_tokens (it is 12)" in said[0] and "evaluate.generate_prompts = 0" in said[0]


# Who answers which prompts


@pytest.mark.parametrize(("count", "world_size", "budget"), [(1, 4, 100), (7, 2, 64), (100, 3, 10_000), (5, 5, 1)])
def test_ranks_have_as_many_batches_of_one_size_and_leave_no_prompt_out(count, world_size, budget):
    """Ranks that hold a model together call it together; a batch keeps to the budget, but for a single prompt."""
    questions = Questions([], [[1] * (3 + 5 * n % 11) for n in range(count)], NEW, END)
    of_ranks = [batches_of(questions, rank, world_size, budget) for rank in range(world_size)]
    sizes = [[len(batch) for batch in of_rank] for of_rank in of_ranks]
    assert all(each == sizes[0] for each in sizes)
    assert {n for of_rank in of_ranks for batch in of_rank for n in batch} == set(range(count))
    assert sum(sizes[0]) == -(-count // world_size)
    longest = max(map(len, questions.prompts)) + NEW
    assert all(size == 1 or (size * longest <= budget and size <= MOST_AT_ONCE) for size in sizes[0])
