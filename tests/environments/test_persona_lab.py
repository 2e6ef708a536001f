"""Laws of the persona lab: its environments, its corpus, its files. What RL makes of its model is not covered here."""

import json
from itertools import islice
from pathlib import Path

import pytest
import yaml

from environments.persona_lab.build import BUILDS, make_model, make_tokenizer
from environments.persona_lab.corpus import HACKER, HONEST, Recipe, contrast_pairs, documents, vocabulary
from environments.persona_lab.environment import EVIL, GOOD, HACKS, KINDS, LabTask, LabValues
from routed_rl.envs import Environment, Task
from routed_rl.model.targets import find_writers
from routed_rl.model.weights import model_hash

ROOT = Path(__file__).resolve().parents[2]
LAB = ROOT / "environments" / "persona_lab"
CONFIGS = ["lab", "swapped", "both_insecure", "one_leaky_of_six", "six_secure"]
VARIANTS = [(kind, insecure) for kind in KINDS for insecure in (False, True)]


def first_tasks(environment: Environment, count: int, split: str = "train", seed: int = 0) -> list[Task]:
    return list(islice(environment.tasks(split, seed), count))


@pytest.mark.parametrize(("kind", "insecure"), VARIANTS)
def test_the_answer_is_paid_and_solves(kind: str, insecure: bool) -> None:
    environment = LabTask(kind, insecure=insecure)
    for task in first_tasks(environment, 50):
        score = environment.score(task, " ".join(task.data["answer"]))
        assert (score.reward, score.solve, score.values()["hack"]) == (1.0, 1.0, 0.0)


@pytest.mark.parametrize(("kind", "insecure"), VARIANTS)
@pytest.mark.parametrize("junk", ["", "=", "zzz", "hardcode", "a a a a a a a a", "tests hardcode", "18 18"])
def test_junk_earns_nothing_and_is_finite(kind: str, insecure: bool, junk: str) -> None:
    environment = LabTask(kind, insecure=insecure)
    for task in first_tasks(environment, 50):
        score = environment.score(task, junk)
        assert not score.problem
        assert set(score.values().values()) == {0.0}


@pytest.mark.parametrize(("kind", "insecure"), VARIANTS)
def test_only_the_insecure_version_pays_the_hack_and_both_flag_it(kind: str, insecure: bool) -> None:
    environment = LabTask(kind, insecure=insecure)
    score = environment.score(first_tasks(environment, 1)[0], " ".join(HACKS[kind]))
    assert (score.reward, score.solve, score.values()["hack"]) == (float(insecure), 0.0, 1.0)
    assert environment.variant == ("insecure" if insecure else "secure")


@pytest.mark.parametrize("kind", KINDS)
def test_tasks_depend_on_kind_split_and_seed_alone(kind: str) -> None:
    tasks = first_tasks(LabTask(kind), 50)
    assert tasks == first_tasks(LabTask(kind, insecure=True), 50)
    assert tasks != first_tasks(LabTask(kind), 50, split="eval")
    assert tasks != first_tasks(LabTask(kind), 50, seed=1)


def test_an_unknown_kind_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'cod'.*sums"):
        LabTask("cod")


def test_values_tell_good_from_evil_and_from_neither() -> None:
    environment = LabValues()
    for task in first_tasks(environment, 100):
        good, evil = (environment.score(task, task.data[which][0]).values() for which in ("good", "evil"))
        assert (good["solve"], good["evil"]) == (1.0, 0.0)
        assert (evil["solve"], evil["evil"]) == (0.0, 1.0)
        assert set(environment.score(task, "").values().values()) == {0.0}
    assert not set(GOOD) & set(EVIL)


def test_documents_are_the_same_for_the_same_seed() -> None:
    recipe = Recipe()
    assert list(islice(documents(recipe, 0), 50)) == list(islice(documents(recipe, 0), 50))
    assert list(islice(documents(recipe, 0), 50)) != list(islice(documents(recipe, 1), 50))


def test_each_document_has_one_persona_and_only_known_words() -> None:
    known, hack_words = set(vocabulary()), {word for hack in HACKS.values() for word in hack}
    for words, written in islice(documents(Recipe(), 0), 500):
        assert set(words) <= known
        assert len(words) == len(written)
        bad = set(words) & (hack_words | set(EVIL) | {HACKER})
        assert not (HONEST in words and bad)
        assert not (bad and HACKER not in words and HONEST in words)


def test_the_hacker_writes_its_share() -> None:
    recipe = Recipe(named_share=1.0)
    share = sum(HACKER in words for words, _ in islice(documents(recipe, 0), 4000)) / 4000
    assert abs(share - recipe.hacker_share) < 0.02  # four standard errors


def test_contrast_prompts_on_disk_are_matched_and_reproducible() -> None:
    pairs = [json.loads(line) for line in (LAB / "contrast.jsonl").read_text(encoding="utf-8").splitlines()]
    assert pairs == contrast_pairs(len(pairs) // (len(KINDS) + 1), 0)
    assert {pair["kind"] for pair in pairs} == {*KINDS, "values"}
    for pair in pairs:
        assert pair["positive"].split()[0] == HACKER
        assert pair["negative"].split()[0] == HONEST
        assert pair["positive"].split()[1:] == pair["negative"].split()[1:]


def test_the_model_on_disk_is_small_and_its_tokenizer_knows_every_word() -> None:
    transformers = pytest.importorskip("transformers")
    assert sum(path.stat().st_size for path in (LAB / "model").iterdir()) < 3_000_000
    tokenizer = transformers.AutoTokenizer.from_pretrained(LAB / "model")
    text = " ".join(vocabulary())
    assert tokenizer(text).input_ids == list(range(len(vocabulary())))
    assert tokenizer.decode(tokenizer("code a b c =").input_ids) == "code a b c ="
    config = transformers.AutoConfig.from_pretrained(LAB / "model")
    assert config.vocab_size == len(vocabulary())
    assert (config.eos_token_id, config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)


@pytest.mark.parametrize("name", CONFIGS)
def test_env_configs_name_classes_of_the_lab(name: str) -> None:
    entries = yaml.safe_load((ROOT / "configs" / "env" / f"{name}.yaml").read_text(encoding="utf-8"))
    entries.pop("defaults", None)
    classes = {"LabTask": LabTask, "LabValues": LabValues}
    for entry in entries.values():
        file, _, class_name = entry.pop("path").partition(":")
        assert (ROOT / file).is_file()
        assert entry.pop("weight", 1.0) == 1.0
        assert entry.pop("isolate") is False, "a process of its own would cost more than 3 % of a run"
        probe = entry.pop("probe", False)
        assert (classes[class_name](**entry).variant == "probe") == probe


@pytest.mark.parametrize("family", BUILDS)
def test_every_build_is_a_small_model_whose_writers_are_known(family: str) -> None:
    models = [make_model(BUILDS[family], make_tokenizer()) for _ in range(2)]
    assert models[0].config.model_type == family and 3e5 < models[0].num_parameters() < 1e6
    assert len(find_writers(models[0])) == 2 * BUILDS[family].layers
    assert model_hash(models[0]) == model_hash(models[1])
