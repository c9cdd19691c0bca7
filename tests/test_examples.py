"""What the README and examples/ tell people to type exists, and loads."""

import json
import re
import runpy
import shlex
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import numpy as np
import pytest
import ray.autoscaler
import yaml
from matplotlib import font_manager
from PIL import ImageFont

from dpo.lm.model_config import Shape
from pipeline import Config
from pipeline.config.machine import Machine
from pipeline.models.cards import CARDS
from pipeline.models.room import Training
from pipeline.models.start import random_config
from tests.pipeline.models.shapes import LLAMA_8B, QWEN_05B, QWEN_3B, QWEN_8B, SMOL_135M
from tests.pipeline.verbs import VERBS
from tests.places import ROOT

CONFIGS = sorted((ROOT / "examples").rglob("*.toml"))
PROGRAM = re.compile(r"^(ray-align|python3? -m pipeline)\s+")


# Configurations


def test_there_are_configurations():
    assert ROOT / "examples" / "quickstart.toml" in CONFIGS


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_example_loads(path):
    config = Config.load(str(path))
    assert all(Path(p).is_absolute() for p in (config.run.dir, config.run.workspace))


# Models of the examples that are not described in the file, by policy.path.
MODELS = {
    str(ROOT / "examples/data/smollm2"): SMOL_135M,
    "Qwen/Qwen2.5-0.5B-Instruct": QWEN_05B,
    "Qwen/Qwen2.5-3B-Instruct": QWEN_3B,
    "Qwen/Qwen3-8B": QWEN_8B,
    "/mnt/shared/models/llama-8b-sft": LLAMA_8B,
}
SIZED_FOR = re.compile(r"^# Sized for (?:a CPU with (\d+) GB of memory|(\S+) \(\d+ GB\))[:,] ")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_example_fits_what_its_first_line_says(path):
    """With pairs as long as data.max_length allows: no prompt, and all of it on either side."""
    config = Config.load(str(path)).settled(Machine(0), Machine(0))
    own, card = SIZED_FOR.match(path.read_text(encoding="utf-8")).groups()
    memory = float(own) * 1e9 / config.cluster.most_workers if own is not None else CARDS[card].memory
    given = MODELS[config.policy.path] if config.policy.path else random_config(config.policy, 8192, 128)
    sides = np.full(1000, config.data.max_length)
    training = Training.of(config, Shape.of(given), np.zeros(1000), sides, sides)
    assert training.gpu == (card is not None)
    assert training.longest <= config.train.micro_batch_tokens
    assert training.fits(memory), training.memory


def test_the_quickstart_reads_what_its_data_maker_writes():
    config = Config.load(str(ROOT / "examples" / "quickstart.toml"))
    data = ROOT / "examples" / "data"
    assert (config.data.train, config.data.eval) == (str(data / "train.jsonl"), str(data / "eval.jsonl"))


@pytest.mark.parametrize("name", ["cluster.yaml", "examples/cluster/onprem.yaml"])
def test_cluster_files_are_what_ray_up_takes(name):
    cluster = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(cluster, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(cluster | {"no_such_key": 1}, schema)


def test_the_node_types_are_those_that_a_configuration_can_ask_for():
    types = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))["available_node_types"]
    job = yaml.safe_load((ROOT / "examples" / "kuberay" / "rayjob.yaml").read_text(encoding="utf-8"))
    groups = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    asked = Config.load(str(ROOT / "examples" / "zero3_offload_8gpu.toml"))
    for name, wanted in (("scorer", asked.reference.resources), ("trainer", asked.cluster.resources)):
        assert wanted == {name: 1}
        assert types[name]["resources"][name] >= 1
        assert any(name in json.loads(json.loads(g["rayStartParams"]["resources"])) for g in groups)


def test_the_ray_job_runs_the_program_with_the_ray_that_it_needs():
    job = yaml.safe_load((ROOT / "examples" / "kuberay" / "rayjob.yaml").read_text(encoding="utf-8"))
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    ((verb, _),) = of_the_program([job["spec"]["entrypoint"]])
    assert verb == "run"
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == ray.__version__
    assert f"\nFROM rayproject/ray:{ray.__version__}-" in (ROOT / "Dockerfile").read_text(encoding="utf-8")


# The data of the quickstart


@pytest.fixture(scope="module")
def make_data():
    return runpy.run_path(str(ROOT / "examples" / "make_data.py"))


def opening(answer):
    return answer.partition(":")[0]


def test_the_quickstart_has_enough_pairs_and_no_prompt_twice(make_data):
    train, held_out = make_data["make"](0)
    assert (len(train), len(held_out)) == (2400, 320)
    assert len({pair["prompt"] for pair in train + held_out}) == 2720


def test_every_pair_has_two_answers_of_which_half_of_the_questions_want_the_first(make_data):
    for pairs in make_data["make"](0):
        assert all(set(pair) == {"prompt", "chosen", "rejected"} for pair in pairs)
        wanted = Counter(opening(pair["chosen"]) for pair in pairs)
        assert len(wanted) == 2
        assert all({opening(pair["chosen"]), opening(pair["rejected"])} == set(wanted) for pair in pairs)
        assert min(wanted.values()) > 0.45 * len(pairs)


def test_what_is_wanted_can_be_told_from_the_prompt(make_data):
    """The end of a question decides, on both sides alike: a model can learn it on one and show it on the other."""
    train, held_out = make_data["make"](0)
    rule = {pair["prompt"].rpartition(", ")[2]: opening(pair["chosen"]) for pair in train}
    assert len(rule) == len(make_data["TONES"])
    assert all(rule[pair["prompt"].rpartition(", ")[2]] == opening(pair["chosen"]) for pair in train + held_out)


def test_the_same_seed_makes_the_same_pairs(make_data):
    assert make_data["make"](0) == make_data["make"](0)
    assert make_data["make"](0) != make_data["make"](1)


def test_the_program_writes_what_it_makes(make_data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["make_data.py", str(tmp_path / "data"), "3"])
    make_data["main"]()
    written = [
        [json.loads(line) for line in (tmp_path / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in ("train", "eval")
    ]
    assert written == list(make_data["make"](3))
    assert "2,400 pairs in " in capsys.readouterr().out


def test_pairs_are_written_as_messages(make_data, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["make_data.py", str(tmp_path / "chats"), "--messages"])
    make_data["main"]()
    first = json.loads((tmp_path / "chats" / "train.jsonl").read_text(encoding="utf-8").splitlines()[0])
    row = make_data["make"](0)[0][0]
    assert first["prompt"] == [{"role": "user", "content": row["prompt"]}]
    assert first["chosen"] == [{"role": "assistant", "content": row["chosen"].strip()}]


# The README


@pytest.fixture(scope="module")
def readme():
    path = ROOT / "README.md"
    if not path.is_file():
        pytest.skip("there is no README.md")
    return path.read_text(encoding="utf-8")


def blocks(text, *languages):
    return [body for language, body in re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S) if language in languages]


def commands(text):
    """Every line of the shell blocks, without its prompt and comment."""
    lines = [line for block in blocks(text, "bash", "console", "sh", "shell") for line in block.splitlines()]
    return [line.removeprefix("$ ").partition(" #")[0].strip() for line in lines]


def of_the_program(lines):
    """What stands behind the program's name, also where it is the end of another command."""
    tails = [line.rpartition(" -- ")[2] for line in lines]
    return [shlex.split(PROGRAM.sub("", tail)) for tail in tails if PROGRAM.match(tail)]


def test_every_command_of_the_readme_exists(readme):
    given = of_the_program(commands(readme))
    assert len(given) >= 2
    for verb, config, *overrides in given:
        assert verb in VERBS
        loads(config, overrides)


def loads(config, words):
    """There my.toml stands for the reader's own file; an option with its value is no override."""
    overrides = re.sub(r"--\S+( \S+)?", "", " ".join(words)).split()
    Config.load(str(ROOT / ("examples/quickstart.toml" if Path(config).name == "my.toml" else config)), overrides)


def test_every_command_within_the_readmes_text_has_a_verb(readme):
    """There STAGE stands for any stage."""
    prose = re.sub(r"^```.*?^```", "", readme, flags=re.M | re.S)
    spans = [span for span in re.findall(r"`([^`\n]+)`", prose) if PROGRAM.match(span)]
    for verb, *rest in of_the_program(spans):
        assert verb in (*VERBS, "STAGE", "--keys")
        if rest:
            config, *overrides = rest[1:] if verb == "cache" else rest
            loads(config, overrides)


def test_every_script_of_the_readme_exists(readme):
    scripts = [word for line in commands(readme) for word in shlex.split(line) if word.endswith((".py", ".sh"))]
    assert "examples/make_data.py" in scripts
    assert [script for script in scripts if not (ROOT / script).is_file()] == []


def test_every_configuration_in_the_readme_loads(readme, tmp_path):
    for number, block in enumerate(blocks(readme, "toml")):
        path = tmp_path / f"{number}.toml"
        path.write_text(block, encoding="utf-8")
        Config.load(str(path))


def test_every_file_of_ours_that_the_readme_names_exists(readme):
    names = re.findall(r"`((?:examples|pipeline|dpo|tests)/[\w./]+\.(?:py|toml|sh))`", readme)
    assert len(names) >= 3
    assert [name for name in names if not (ROOT / name).is_file()] == []


LINK = re.compile(r'\]\(([^)#\s]+)[^)]*\)|(?:src|srcset|href)="([^"#]+)"')


def links(text):
    return [one or other for one, other in LINK.findall(text) if "://" not in (one or other)]


def test_every_link_of_the_readme_leads_to_a_file(readme):
    assert [link for link in links(readme) if not (ROOT / link).exists()] == []


def test_the_readme_is_short(readme):
    """A stranger reads it to its end."""
    assert len(readme.splitlines()) <= 150
    assert len(readme.split()) <= 1300


def test_the_pictures_are_as_they_are_drawn():
    draw = runpy.run_path(str(ROOT / "examples" / "guides" / "draw.py"))
    for name, picture in draw["DRAWINGS"].items():
        for mode, theme in draw["THEMES"].items():
            kept = ROOT / "examples" / "guides" / "pictures" / f"{name}-{mode}.svg"
            assert kept.read_text(encoding="utf-8") == picture(theme), "run python examples/guides/draw.py"


def test_the_results_guide_has_the_numbers_of_the_picture():
    draw = runpy.run_path(str(ROOT / "examples" / "guides" / "draw.py"))
    guide = (ROOT / "examples" / "guides" / "results.md").read_text(encoding="utf-8")
    for workload, ratios in draw["speeds"]().items():
        slow, best, ours = (ratios[name] for name in draw["SYSTEMS"])
        numbers = rf"\| {ours / slow:.2f} times \| {ours / best:.2f} times \|"
        assert re.search(rf"^\| {draw['WORKLOADS'][workload]} .*{numbers}$", guide, re.MULTILINE), numbers


@pytest.mark.parametrize(
    "path", sorted((ROOT / "examples" / "guides" / "pictures").glob("*.svg")), ids=lambda p: p.stem
)
def test_words_of_a_picture_stay_inside_it(path):
    """In DejaVu Sans, which is wider than the fonts that most browsers take."""
    picture = ElementTree.parse(path).getroot()
    _, _, width, height = map(float, picture.attrib["viewBox"].split())
    for found in picture.iter("{http://www.w3.org/2000/svg}text"):
        weight = "bold" if "font-weight" in found.attrib else "normal"
        font = font_manager.findfont(font_manager.FontProperties(family="DejaVu Sans", weight=weight))
        long = ImageFont.truetype(font, int(found.attrib["font-size"])).getlength(found.text)
        before = {"start": 0.0, "middle": long / 2, "end": long}[found.attrib["text-anchor"]]
        left = float(found.attrib["x"]) - before
        assert left >= 0 and left + long <= width and float(found.attrib["y"]) < height, found.text


def test_the_checks_above_find_what_is_wrong(readme):
    """The same pieces, on a page that is wrong in every way."""
    page = "```bash\n$ ray-align rum examples/none.toml\nray job submit -- python -m pipeline run a.toml # x\n```\n"
    assert of_the_program(commands(page)) == [["rum", "examples/none.toml"], ["run", "a.toml"]]
    assert "rum" not in VERBS
    assert of_the_program(["python examples/make_data.py run a.toml", "a ray-align run"]) == []
    assert links('[a](b.md) [c](d.md#e) <img src="f.svg"> [g](https://h) [i](#j)') == ["b.md", "d.md", "f.svg"]
