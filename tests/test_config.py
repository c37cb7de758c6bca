"""Configuration: merging, what a value may be, and that every problem is named at once."""

import itertools
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import yaml

from ldm.config import (
    Config,
    config_keys,
    differences,
    flat,
    instantiate,
    load_config,
    split_command_line,
    to_yaml,
)
from ldm.config.checks import contains_word
from ldm.config.document import reference
from ldm.config.ranges import value_at
from ldm.config.schema import Adapter, Prior, Sampler
from ldm.errors import UserError

ROOT = Path(__file__).parent.parent
MAIN_JOB = ROOT / "configs" / "dreambooth.yaml"
OVERLAYS = sorted(set((ROOT / "configs").glob("*.yaml")) - {MAIN_JOB})
PAIRS = list(itertools.permutations(OVERLAYS, 2))


def problems(*overrides: str, files: tuple[Path, ...] = ()) -> str:
    with pytest.raises(UserError) as caught:
        load_config(list(files), list(overrides))
    return str(caught.value)


def yaml_file(folder: Path, text: str, name: str = "some.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_main_job_holds_every_key() -> None:
    document = yaml.safe_load(MAIN_JOB.read_text(encoding="utf-8"))

    def flat(section: dict, prefix: str = "") -> set[str]:
        keys: set[str] = set()
        for name, value in section.items():
            inner = isinstance(value, dict) and value
            keys |= flat(value, f"{prefix}{name}.") if inner else {prefix + name}
        return keys

    # Keys of a section that is off here stand in the overlay that turns it on.
    overlay = yaml.safe_load((MAIN_JOB.parent / "lora.yaml").read_text(encoding="utf-8"))
    assert document["adapter"] is None
    assert flat({**document, "adapter": overlay["adapter"]}) == set(config_keys())


@pytest.mark.parametrize("path", [MAIN_JOB, *OVERLAYS], ids=lambda path: path.name)
def test_shipped_configs_are_valid_and_commented(path: Path) -> None:
    load_config([MAIN_JOB, path], [])
    lines = path.read_text(encoding="utf-8").splitlines()
    head = [line for line in lines[:12] if line.startswith("#")]
    assert any("python main.py --base" in line for line in head), "opens with its launch command"
    for line, above in zip(lines, ["", *lines], strict=False):
        if re.match(r" *\w+:", line) and not re.fullmatch(r"\w+:", line):  # not a bare section
            assert "#" in line or above.strip().startswith("#"), f"{path.name}: no comment: {line}"


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: "+".join(path.stem for path in pair))
def test_overlays_go_together(pair: tuple[Path, Path]) -> None:
    load_config([MAIN_JOB, *pair], [])


def test_home_folder_is_found_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/nobody")
    monkeypatch.setenv("USERPROFILE", "/nobody")
    keys = ("logs", "subject.pictures", "data.cache", "prior.folder", "prior.root")
    config = load_config([], [f"{key}=~/there" for key in keys])
    assert {value_at(config, key) for key in keys} == {"/nobody/there"}
    without = load_config([], ["prior=null", "data.cache=null", "logs=a/~"])
    assert (without.prior, without.data.cache, without.logs) == (None, None, "a/~")


def test_files_and_overrides_merge_left_to_right(tmp_path: Path) -> None:
    first = yaml_file(tmp_path, "training: {steps: 10, batch: 2}\nseed: 1", "a.yaml")
    second = yaml_file(tmp_path, "training: {steps: 20}", "b.yaml")
    config = load_config([first, second], ["training.learning_rate=1e-5", "seed=3"])
    assert (config.training.steps, config.training.batch, config.seed) == (20, 2, 3)
    assert config.training.learning_rate == 1e-5
    assert load_config([second, first], []).training.steps == 10


def test_yaml_of_a_config_repeats_it(tmp_path: Path) -> None:
    overrides = ["sampling.negative=no", "prior=null", "subject.prompt=[V] dog: a #1", "name=1"]
    config = load_config([MAIN_JOB], overrides)
    assert config.sampling.negative == "no"
    assert load_config([yaml_file(tmp_path, to_yaml(config))], []) == config


@pytest.mark.parametrize(
    ("text", "prompts"),
    [
        ("a drawing of [V] dog", ["a drawing of [V] dog"]),
        ("[V] dog", ["[V] dog"]),
        ("[V]", ["[V]"]),
        ("a [V] dog: red, at 50% #1", ["a [V] dog: red, at 50% #1"]),
        ("'[V] dog'", ["[V] dog"]),
        ('["a [V] dog", "two [V]"]', ["a [V] dog", "two [V]"]),
        ("a ${subject.class_noun} [V]", ["a robot [V]"]),
    ],
)
def test_prompts_from_the_command_line(text: str, prompts: list[str]) -> None:
    assert load_config([], [f"subject.prompt={text}"]).subject.prompt == prompts


def test_texts_stay_texts(tmp_path: Path) -> None:
    """What YAML takes for a boolean, a number or null is a text where a text is wanted."""
    for text in ("no", "1e5", "0x10", "2020-01-01", "1_000"):
        assert load_config([], [f"subject.identifier={text}"]).subject.identifier == text
        file = yaml_file(tmp_path, f"subject: {{identifier: {text}}}")
        assert load_config([file], []).subject.identifier == text
    assert load_config([], ["subject.identifier='null'"]).subject.identifier == "null"
    assert load_config([], ["model.revision=null"]).model.revision is None
    assert load_config([], ["samples.prompts=no"]).samples.prompts == ["no"]


def test_null_and_optional_section() -> None:
    assert load_config([], ["prior=null"]).prior is None
    made = load_config([], ["prior=null", "prior.count=9"]).prior
    assert made is not None
    prompts = [prompt.replace("${subject.class_noun}", "robot") for prompt in Prior().prompt]
    noun = replace(Prior(), count=9, prompt=prompts)
    assert made == noun
    adapter = load_config([], ["adapter.rank=16"]).adapter
    assert adapter == Adapter(rank=16)
    blocks = load_config([], ["adapter.targets=[up_blocks.0.attentions.1, to_k]"]).adapter
    assert blocks and blocks.targets == ["up_blocks.0.attentions.1", "to_k"]


def test_class_noun_reaches_the_prompts() -> None:
    config = load_config([MAIN_JOB], ["subject.class_noun=fish"])
    assert config.prior and config.prior.prompt[0] == "a drawing of a fish"
    assert config.subject.prompt == ["a drawing of [V] fish"]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.stepz=3", "did you mean training.steps?"),
        ("trainig.steps=3", "did you mean training.steps?"),
        ("lr=1", "did you mean training.learning_rate?"),
        ("steps=3", "training.steps"),
        ("training.steps.x=3", "unknown key"),
        ("nothing=3", "known here: name, logs"),
        ("training.nothing=3", "known here: steps, batch"),
        ("training", "expected key=value"),
        ("=3", "expected key=value"),
        ("training.batch=abc", "training.batch=abc: must be a whole number"),
        ("training.batch=2.5", "whole number"),
        ("training.batch=true", "whole number"),
        ("training.batch=null", "whole number"),
        ("training.learning_rate=fast", "must be a number"),
        ("logger.wandb=perhaps", "true or false"),
        ("training.schedule=cosin", "did you mean cosine?"),
        ("sampling.sampler=ddmi", "did you mean ddim?"),
        ("training.precision=16", "one of auto, fp32, bf16-mixed, 16-mixed"),
        ("training.betas=0.9", "a list of numbers"),
        ("training.betas=[0.9]", "two numbers"),
        ("training.betas=[0.9,1.0]", "two numbers"),
        ("model=3", "model=3: must be a section"),
        ("prior=4", "null or a section"),
        ("subject.identifier=null", "not null"),
        ("samples.prompts=['a, b", "list of texts"),
        ("subject.prompt=a [V] ${nowhere}", "nowhere"),
        ("training.steps=0", "training.steps=0: must be at least 1"),
        ("training.batch=-1", "at least 1"),
        ("training.learning_rate=0", "more than 0"),
        ("training.learning_rate=nan", "finite"),
        ("training.learning_rate=.inf", "finite"),
        ("training.gradient_clip=0", "more than 0"),
        ("objective.min_snr_gamma=-5", "more than 0"),
        ("sampling.rescale=2", "at most 1"),
        ("seed=-1", "at least 0"),
        ("training.accumulate=3 prior=null", "training.batch=4: must be a multiple"),
        ("prior.batch=3 training.accumulate=2", "prior.batch=3: must be a multiple"),
        ("training.warmup=601", "longer than training.steps=600"),
        ("samples.prompts=[]", "samples.every=0"),
        ("subject.prompt=[]", "at least one prompt"),
        ("subject.prompt=a robot", "put [V] where"),
        ("subject.class_noun=", "subject.class_noun is empty"),
        ("subject.pictures=", "subject.pictures is empty"),
        ("subject.background=whight", "must be a colour"),
        ("prior.prompt=a cat", "does not contain the class noun"),
        ("prior.prompt=a sks robot", "leave the identifier out"),
        ("prior.prompt=a [V] robot", "leave the identifier out"),
        ("trainer.devices=two", "trainer.devices"),
        ("training.optimizer=adan", "must be one of adamw, adamw_8bit"),
        ("training.optimizer_arguments=3", "names and values"),
        ("training.pivotal=2", "at most 1"),
        ("training.pivotal=0.6 training.steps=100 training.warmup=50", "training.warmup=50"),
        ("training.pivotal=0.6 training.text_encoder_stop=0.2", "until training.pivotal=0.6"),
        ("training.optimizer=torch.optim:SGD training.betas=[0.1,0.2]", "does not get them"),
        ("objective.pyramid_noise=5", "at most 1"),
        ("training.optimizer_arguments={lr: 1}", "set training.learning_rate instead"),
        (
            "training.optimizer=prodigy training.text_encoder_learning_rate=1e-5",
            "prodigy takes one rate",
        ),
        ("subject.prompt='a [V] robot and [V2]'", "[V2] is for samples.prompts alone"),
        (
            "subjects=[{pictures: a, identifier: b, class_noun: c, prior_prompt: a dog}]",
            "subjects[0].prior_prompt='a dog': does not contain the class noun",
        ),
        (
            "subjects=[{pictures: a, identifier: b, class_noun: c, prior_prompt: a b c}]",
            "subjects[0].prior_prompt='a b c': must not name the subject",
        ),
        ("training.pivotal=0.1 subject.identifier= subject.prompt=a [V] robot", "to train"),
        ("training.text_encoder_stop=0.5 model.train_text_encoder=false", "nothing uses it"),
        ("adapter.rank=0", "adapter.rank=0: must be at least 1"),
        ("adapter.alpha=0", "more than 0"),
        ("adapter.dropout=1", "at most 0.99"),
        ("adapter.kind=lokra", "one of lora, dora"),
        ("adapter.kind=oft adapter.conv=true", "for linear layers alone"),
        ("adapter.kind=oft adapter.alpha=2", "oft has no alpha"),
        (
            "adapter.text_encoder_rank=4 model.train_text_encoder=false",
            "adapter.text_encoder_rank=4: nothing uses it",
        ),
        ("adapter.timestep_rank=0", "at least 1"),
        ("adapter.timestep_rank=8", "must be less than adapter.rank=8"),
        ("adapter.timestep_rank=2 adapter.kind=dora", "for lora and rslora, not for dora"),
        ("adapter.timestep_rank_power=0", "more than 0"),
        ("objective.loss=l3", "one of l2, huber, smooth_l1"),
        ("objective.huber_c=0", "more than 0"),
        ("objective.caption_dropout=1.5", "at most 1"),
        ("objective.timestep_min=9 objective.timestep_max=9", "must be less than"),
        ("ema.decay=1", "must be less than 1"),
        ("prior.images=live prior.folder=somewhere", "is not used with prior.images=live"),
        ("prior.images=subject prior.target=data", "only with prior.target=base"),
        ("prior.weight_end=-1", "at least 0"),
        ("subjects=3", "must be a list of sections"),
        ("subjects=[{pictures: a, identifier: b, class_noun: c, paint: d}]", "subjects[0].paint"),
        ("subjects=[{pictures: a, class_noun: c}]", "subjects[0].identifier is missing"),
        ("subjects=[{pictures: a, identifier: SKS, class_noun: c}]", "another subject has it"),
        (
            "subjects=[{pictures: a, identifier: b, class_noun: c, weight: -1}]",
            "subjects[0].weight",
        ),
        (
            "subjects=[{pictures: a, identifier: b, class_noun: c, prompt: a cat}]",
            "subjects[0].prompt='a cat': does not name the subject",
        ),
        (
            "prior.folder=x subjects=[{pictures: a, identifier: b, class_noun: c}]",
            "holds one class",
        ),
        ("trainer.strategy=fsdp", "must be auto or ddp"),
        ("name=a/b", "letters"),
        ("evaluation.oracle=ldm.storybook", "package.module:Name"),
        ("evaluation.class_images=1", "at least 2"),
        ("evaluation.every=200", "must be a multiple of snapshots.every=300"),
        ("evaluation.patience=2", "nothing is measured while training; set evaluation.every"),
        ("evaluation.final=false", "nothing is ever measured"),
        (
            "snapshots.every=10 evaluation.every=90000 evaluation.final=false",
            "nothing is ever measured; lower it",
        ),
        ("evaluation.oracle=null", "there is nothing to compare"),
        ("evaluation.margins={drift: -1}", "{drift: -1.0}: must be a number of at least 0"),
        ("evaluation.prompts=['a robot']", "evaluation.prompts='a robot': does not name"),
        ("evaluation.unrelated=['a sks hat']", "'a sks hat': must not name the subject"),
    ],
)
def test_each_problem_is_named(override: str, said: str) -> None:
    message = problems(*re.split(r" (?=[\w.]+=)", override))
    assert said in message
    assert "\n" not in message, "one problem is one line"


def test_several_subjects_are_read_and_written(tmp_path: Path) -> None:
    given = "subjects=[{pictures: ~/cat, identifier: no, class_noun: cat, prompt: 'a [V] cat'}]"
    config = load_config([MAIN_JOB], [given])
    (subject,) = config.subjects
    assert subject.identifier == "no" and subject.prompt == ["a [V] cat"]
    assert not subject.pictures.startswith("~")
    file = yaml_file(tmp_path, to_yaml(config))
    assert differences(flat(config), flat(load_config([file], []))) == {}


def test_numbers_among_the_optimizers_arguments() -> None:
    given = "training.optimizer_arguments={eps: 1e-6, name: text, flag: true}"
    arguments = load_config([MAIN_JOB], [given]).training.optimizer_arguments
    assert arguments == {"eps": 1e-6, "name": "text", "flag": True}


def test_all_problems_at_once(tmp_path: Path) -> None:
    file = yaml_file(tmp_path, "training: {stepz: 3, steps: no}\nmodel: 4\n")
    message = problems("seed=x", "prior.count=0", files=(file, tmp_path / "absent.yaml"))
    for said in (
        "6 problems",
        f"{file}: training.stepz: unknown key",
        f"{file}: training.steps=False: must be a whole number",
        f"{file}: model=4",
        "absent.yaml: no such configuration file",
        "command line: seed=x",
        "prior.count=0: must be at least 1",
    ):
        assert said in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("subject:\n  prompt: [V] dog\n", "line 2"),
        ("- a\n- b\n", "section"),
        ("seed: 1\nseed: 2\n", "duplicate"),
        ("seed: [\n", "not valid YAML"),
    ],
)
def test_damaged_files(tmp_path: Path, text: str, said: str) -> None:
    file = yaml_file(tmp_path, text)
    message = problems(files=(file,))
    assert str(file) in message and said in message


def test_empty_file_and_non_text(tmp_path: Path) -> None:
    for nothing in ("# nothing\n", "", " \n"):
        assert load_config([yaml_file(tmp_path, nothing)], []) == load_config([], [])
    file = tmp_path / "picture.yaml"
    file.write_bytes(b"\xff\xd8\xff")
    assert "cannot be read" in problems(files=(file,))


def test_split_command_line() -> None:
    words = ["a.yaml", "x.y=1", "b.yaml", "subject.prompt=a = b"]
    assert split_command_line(words) == (
        [Path("a.yaml"), Path("b.yaml")],
        ["x.y=1", "subject.prompt=a = b"],
    )


def test_a_long_value_is_no_file_name() -> None:
    word = f"samples.prompts={['a drawing of [V] robot'] * 20}"
    assert split_command_line([word]) == ([], [word])


def test_differences() -> None:
    plain, other = flat(load_config([], [])), flat(load_config([], ["seed=4"]))
    assert differences(plain, other) == {"seed": (0, 4)}
    assert "prior.count" in differences(plain, flat(load_config([], ["prior=null"])))
    several = ["subjects=[{pictures: a, identifier: b, class_noun: c}]"]
    assert differences(plain, flat(load_config([], several))).keys() == {"subjects"}
    assert json.loads(json.dumps(flat(load_config([], several)))) == flat(load_config([], several))


def test_instantiate() -> None:
    assert instantiate("datetime:timedelta", days=2).days == 2
    for dotted in ("datetime:nothing", "nothing.at_all:x", "datetime"):
        with pytest.raises(UserError, match="package.module:Name"):
            instantiate(dotted)
    with pytest.raises(UserError, match="cannot be called"):
        instantiate("ldm.config:load_config", nothing=1)


def test_samplers_are_those_that_exist() -> None:
    from ldm.sampling.samplers import SAMPLERS

    assert set(get_args(Sampler)) == set(SAMPLERS)


def test_default_values_of_main_job() -> None:
    """The schema's defaults and the main job agree, so that overlays mean the same on either."""
    assert differences(flat(load_config([], [])), flat(load_config([MAIN_JOB], []))) == {}
    assert isinstance(load_config([], []), Config)


def test_no_heavy_import_before_the_config_is_valid() -> None:
    code = "import sys, main; main.main(['--base', 'absent.yaml']); print('torch' in sys.modules)"
    made = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert made.stdout.strip() == "False", made.stderr


@pytest.mark.parametrize(
    ("prompt", "noun", "stands_there"),
    [
        ("a robot", "robot", True),
        ("Robots at night", "robot", True),
        ("two Robot toys", "robot", True),
        ("a robot, red", "robot", True),
        ("a drawing of a dog", "robot", False),
        ("a robotic arm", "robot", False),
        ("a carpet", "car", False),
        ("a toy", "stuffed toy", False),
    ],
)
def test_class_noun_is_found_as_a_word(prompt: str, noun: str, stands_there: bool) -> None:
    assert contains_word(prompt, noun) == stands_there


def test_the_optimizers_names_are_the_same_everywhere() -> None:
    from ldm.config.checks import OPTIMIZERS as IN_CONFIG
    from ldm.run.memory.prediction import OPTIMIZER_BYTES
    from ldm.training.optim import OPTIMIZERS, PACKAGES

    assert set(IN_CONFIG) == set(OPTIMIZERS) == set(OPTIMIZER_BYTES)
    assert set(PACKAGES) < set(OPTIMIZERS)


def test_the_page_of_all_keys_is_what_the_code_says() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text("utf-8")
    assert page == reference(ROOT), "python -m ldm.config.document > docs/configuration.md"
    rows = dict(re.findall(r"^\| `([\w.]+)` \| .* \| (.*) \|$", page, re.MULTILINE))
    told = {key for key, said in rows.items() if said}
    assert told >= {key for key in config_keys() if not key.startswith("subjects")}
    assert "| `training.optimizer_arguments` | mapping | `{}` |" in page
