"""What the library refuses: one line with the thing, the value and the way out, before anything has changed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import ClassLabel, DatasetDict, IterableDataset
from peft import AdaLoraConfig, LoraConfig
from transformers import T5Config, T5ForConditionalGeneration

from routed_rl import (
    MonitorConfig,
    PracticeConfig,
    RandomControlConfig,
    RoutedRLError,
    RoutingConfig,
    RuleConfig,
    SubspaceConfig,
    extract_subspace,
)
from routed_rl.envs import Score
from routed_rl.model.weights import model_hash
from routed_rl.training.completions import CompletionFiles
from routed_rl.training.library.checks import check_arguments
from routed_rl.training.library.datasets import check_prompts
from routed_rl.training.library.labelled import LabelledRows
from tests.library import PLAIN, arguments, load, right, rows, short, subspace_of, trainer
from tests.parts import write_parts


def strict(completions: list[Any], answer: list[str]) -> list[float]:
    return [float(len(answer))] * len(completions)


def only(name: Any) -> Any:
    return rows(environment=["a", name] * 8)


SLOWLY = RoutingConfig(practice=PracticeConfig(share=0))
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"environment_column": "env"}, r"train_dataset has no column env \(it has prompt, answer, environment\); set environment_c"),
    ({"dataset": only("")}, r"row 1, column environment: the environment's name '' is empty"),
    ({"dataset": only("x/y")}, "name 'x/y' has the character '/'; choose another one"),
    ({"dataset": only("all")}, "name 'all' is a name that routed_rl uses itself"),
    ({"dataset": only(None)}, "name None is no text"),
    ({"dataset": rows(environment=[["a"]] * 16)}, r"row 0, column environment: the environment's name \['a'\] is no text"),
    ({"dataset": rows(0)}, "train_dataset has no rows"),
    ({"dataset": IterableDataset.from_generator(lambda: iter([]))}, "train_dataset is IterableDataset; give a datasets.Dataset"),
    ({"subspace": None}, "routing.mode=route needs a subspace, and there is none; give subspace=extract_subspace"),
    ({"subspace": "folder"}, r"needs a subspace, and got 'folder'.*Subspace.load\(FOLDER\)"),
    ({"monitor": MonitorConfig(pull=RuleConfig(limits={"c": 1.0}))}, r"monitor\.pull\.limits has c, which is not trained on"),
    ({"routing": RoutingConfig(practice=PracticeConfig(environments=["c"]))}, "has c, which is not trained on; choose from a, b"),
    ({"routing": None, "tools": [right]}, "tools makes rollouts of its own, in which no row can practise; set routing"),
    ({"monitor": MonitorConfig(pull=RuleConfig(action="halt"))}, r"monitor\.pull\.action=halt has no limit, so it would never"),
    ({"monitor": MonitorConfig(health=5)}, "monitor.health=5 needs the flags that environments report, and reward functions"),
    ({"peft_config": LoraConfig(r=33)}, "peft_config.r=33 is more than the smallest width .* 16, .*; set peft_config.r to 16"),
    ({"peft_config": LoraConfig(use_dora=True), "routing": PLAIN}, "peft_config.use_dora is refused: its mag.*; leave it out"),
    ({"peft_config": {"r": 4}}, r"peft_config=\{'r': 4\} is not supported; give a peft.LoraConfig"),
    ({"quantization_config": {"load_in_4bit": True}}, "quantization_config is not supported: weights of 4 or 8 bits are"),
    ({"args": {"use_vllm": True}}, "args.use_vllm=True is not supported: its engine would serve the deployed model; the command"),
    ({"args": {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2}}, "args.load_best_model_at_end=True"),
    ({"args": {"remove_unused_columns": True}}, "it drops the column that names the environment; leave it out"),
    ({"args": {"bf16_full_eval": True}}, "args.bf16_full_eval=True is not supported: an evaluation would cast the weights them"),
    ({"routing": "none"}, r"routing='none' is a str; write routing=RoutingConfig\(...\)"),
    ({"monitor": False}, r"monitor=False is a bool; write monitor=MonitorConfig\(...\)"),
    ({"bases": {"layout": "shared"}}, r"bases=\{'layout': 'shared'\} is a dict; write bases=SubspaceConfig\(...\)"),
    ({"bases": SubspaceConfig(rank=2)}, r"bases.rank=2 does nothing here, where layout, .* are read; give it to extract_su"),
    ({"freeze": ["embeddings"]}, "^freeze=embeddings is not known; choose from embedding, unembedding"),
    ({"enviroment_column": "a"}, "RoutedGRPOTrainer has no argument enviroment_column; did you mean environment_column?"),
    ({"listener": print}, "RoutedGRPOTrainer has no argument listener; leave it out"),
    ({"model": None}, r"model is a NoneType; give a model of transformers, such as .*\(PATH\), or its path"),
    ({"model": "/nowhere"}, "no model could be loaded from '/nowhere': "),
    ({"peft_config": AdaLoraConfig(total_step=9)}, "peft_config=AdaLora.* is not supported; give a peft.LoraConfig"),
    ({"functions": []}, r"reward_funcs=\[\] has no function; give one that returns a number for each completion"),
    ({"functions": [right, 1.0]}, "reward_funcs has 1.0, which is no function; give a function, or a reward model"),
    ({"functions": dict}, "reward_funcs has <class 'dict'>, which is no function"),
    ({"functions": torch.nn.Linear(2, 1)}, "reward_funcs has a Linear, which is no model of transformers; give a function that"),
    ({"functions": strict}, r"reward_funcs: strict: .*test_library_refusals.py:\d+: cannot be called as TRL does: .*take \*\*k"),
    ({"dataset": rows().rename_column("prompt", "question")}, r"has no column prompt \(it has question, .*rename_column\(NAME"),
    ({"dataset": rows().with_format("torch", columns=["answer", "environment"])},
     r"has no column prompt \(it has answer, environment\); its format hides that column: give dataset.with_format\(None\)"),
    ({"dataset": rows().with_format("numpy", columns=["answer", "prompt"])}, "no column environment .*; its format hides that"),
    ({"dataset": rows(2)}, r"train_dataset has 2 rows, and a generation takes 4 prompts \(16 completions, 4 of each prompt\),"),
    ({"dataset": DatasetDict({"a": rows(), "b": rows()})}, r"is a DatasetDict of the splits a, b; give one of them, .*\['a'\]"),
    ({"dataset": [{"prompt": "add"}]}, r"train_dataset=\[.* is a list; give a datasets.Dataset, such as Dataset.from_list"),
    ({"dataset": rows(images=[["x"]] * 16)}, r"the column images, and images are not covered; leave it out: .*remove_columns"),
    ({"dataset": rows(completions=["x"] * 16)}, "the column completions, and TRL gives reward functions completions of its own"),
    ({"eval_dataset": {"one": rows(4), "two": rows(4).remove_columns("prompt")}}, r"eval_dataset\['two'\] has no column prompt"),
    ({"eval_dataset": {"one": rows(4).remove_columns("answer")}},
     r"reward_funcs: right, for the rows of eval_dataset\['one'\]: .* missing a required argument: 'answer'; .*take \*\*kwargs"),
    ({"processing_class": "name"}, "processing_class='name' is a str; give the model's tokenizer, such as AutoTokenizer"),
    ({"optimizers": (torch.optim.SGD(torch.nn.Linear(2, 2).parameters()), None)}, "optimizers has a SGD that holds no para"),
]


@pytest.mark.parametrize(("given", "message"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_is_refused_in_one_line_and_the_model_stays(parts, subspace, tmp_path, given, message):
    model, _ = load(parts)
    before, kinds = model_hash(model), [type(module) for module in model.modules()]
    args = arguments(tmp_path / "run", **given.get("args", {}))
    with pytest.raises(RoutedRLError, match=message) as caught:
        trainer(parts, tmp_path, **{"model": model, "eval_dataset": rows(4), "subspace": subspace} | given | {"args": args})
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()
    assert model_hash(model) == before and [type(module) for module in model.modules()] == kinds


def test_settings_of_other_kinds_are_refused_where_they_are_made(parts, subspace, tmp_path):
    with pytest.raises(RoutedRLError, match=r"routing.practice must be PracticeConfig\(...\), got 0.5"):
        RoutingConfig(practice=0.5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(RoutedRLError, match=r"monitor.evidence must be RuleConfig\(...\), got 6.0"):
        MonitorConfig(evidence=6.0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(RoutedRLError, match="routing.random_control.every must be int, got 0.5"):
        RandomControlConfig(every=0.5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(RoutedRLError, match="a monitor rule.limit must be float or null, got '6'"):
        RuleConfig(limit="6")  # pyright: ignore[reportArgumentType]
    with pytest.raises(RoutedRLError, match=r"args=\{'max_steps': 1\} is a dict; write args=GRPOConfig\(...\)"):
        trainer(parts, tmp_path, subspace=subspace, args={"max_steps": 1})


@pytest.mark.parametrize("lora", [{}, pytest.param({"peft_config": LoraConfig(r=4)}, marks=pytest.mark.slow)])
def test_after_an_error_of_trl_the_model_is_as_it_was_and_can_be_trained(parts, subspace, tmp_path, lora):
    model, _ = load(parts)
    before, names = model_hash(model), [*model.state_dict()]
    trains, model.unused = [parameter.requires_grad for parameter in model.parameters()], torch.nn.Dropout(0.1)
    args = arguments(tmp_path, reward_weights=[1.0, 2.0], disable_dropout=True)
    with pytest.raises(ValueError, match="Number of reward weights"):
        trainer(parts, tmp_path, model=model, subspace=subspace, args=args, **lora)
    assert model.unused.p == 0.1
    assert model_hash(model) == before and [*model.state_dict()] == names
    assert trains == [parameter.requires_grad for parameter in model.parameters()]
    trainer(parts, tmp_path, model=model, subspace=subspace, **lora)


def test_chat_messages_without_a_template_and_prompts_of_no_text_are_refused(parts, subspace, tmp_path):
    """Also those of an evaluation, which would end the training at its first one."""
    chat = rows().map(lambda row: {"prompt": [{"role": "user", "content": row["prompt"]}]})
    for name, given in (("train_dataset", {"dataset": chat}), (r"eval_dataset\['one'\]", {"eval_dataset": {"one": chat}})):
        with pytest.raises(RoutedRLError, match=f"{name}, row 0: the prompt is chat messages, and processing_class has no chat "
                                                "template; s"):
            trainer(parts, tmp_path, subspace=subspace, **given)
    seen = [{"role": "user", "content": [{"type": "image", "text": None}]}]
    nobody, nothing, number = {"content": "add"}, {"role": "user", "content": None}, {"role": "user", "content": 3}
    chatty = SimpleNamespace(chat_template="{{ messages }}")
    for prompts in ([7] * 16, [seen] * 16, ["add", ""] * 8, ["add", None] * 8, [["add"]] * 16, [[nobody]] * 16, [[nothing]] * 16,
                    [[number]] * 16):
        for name, given in (("train_dataset", (rows(prompt=prompts), None)), ("eval_dataset", (rows(), rows(prompt=prompts)))):
            with pytest.raises(RoutedRLError, match=f"{name}, row [01]: the prompt is .*; give text, or chat messages of"):
                check_prompts(*given, chatty, {})
    said = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
    part = {"role": "user", "content": [{"type": "text", "text": "add"}]}
    check_prompts(rows(prompt=[[said, part]] * 16), None, chatty, {})


def labels(names: list[str], values: list[Any]) -> Any:
    return rows(environment=values * 8).cast_column("environment", ClassLabel(names=names))


def test_an_evaluation_by_other_class_labels_and_a_row_without_one_are_refused(parts, subspace, tmp_path):
    ours, other = labels(["b", "a"], [0, 1]), labels(["a", "b"], [0, 1])
    for given, message in (({"dataset": ours, "eval_dataset": {"one": other}},
                            r"eval_dataset\['one'\], column environment, has the class labels a, b, and train_dataset has b, a; "
                            "give both the same ones, by dataset.align_labels_with_mapping"),
                           ({"dataset": labels(["b", "a"], [0, None])}, "row 1, column environment: .*name None is no text"),
                           ({"dataset": labels(["x/y", "a"], [1, 0])}, "row 1, column environment: .*'x/y' has the character")):
        with pytest.raises(RoutedRLError, match=message):
            trainer(parts, tmp_path, subspace=subspace, **given)


@pytest.mark.slow
@pytest.mark.parametrize("form", [None, "torch", "numpy"])
def test_class_labels_are_environments_by_their_names(parts, subspace, tmp_path, form):
    def told(name: str, values: Any) -> Any:
        args = arguments(tmp_path / name, max_steps=1, eval_strategy="steps", eval_steps=1)
        made = trainer(parts, tmp_path, subspace=subspace, args=args, dataset=values.with_format(form), functions=short,
                       eval_dataset=values)
        made.train()
        logged = {key: value for row in made.state.log_history for key, value in row.items() if "environment/" in key}
        return logged, {key: value for key, value in made.rows[0].items() if "time" not in key and "/s" not in key}

    assert told("labels", labels(["b", "unused", "a"], [2, 0])) == told("text", rows())


def test_a_model_of_which_nothing_is_trained_is_refused(parts, subspace, tmp_path):
    model = load(parts)[0].requires_grad_(False)
    for routing in ({}, {"routing": PLAIN}):
        with pytest.raises(RoutedRLError, match="all parameters of .*model are frozen, so nothing would be trained; call model"):
            trainer(parts, tmp_path, model=model, subspace=subspace, **routing)


def test_an_infinite_reward_ends_a_step():
    made = LabelledRows(["data"], None, [right], 1, CompletionFiles(None, 0))
    with pytest.raises(RoutedRLError, match="step 3: right paid inf for 1 of 2 completions; return finite numbers, or None"):
        made.paid([{}, {}], ["", ""], ["", ""], [Score(1.0), Score(float("inf"))], 3)


@pytest.mark.slow
def test_a_stream_of_too_few_prompts_makes_no_step_and_says_so(parts, subspace, tmp_path):
    stream = rows(2).to_iterable_dataset()
    made = trainer(parts, tmp_path, subspace=subspace, dataset=stream, environment_column=None)
    with pytest.raises(RoutedRLError, match="no step was made, because train_dataset gave fewer prompts than a .*, 4"):
        made.train()


def test_a_tokenizer_without_an_end_is_refused_and_one_that_cannot_be_found_or_does_not_fit(parts, subspace, tmp_path):
    model, tokenizer = load(parts)
    tokenizer.eos_token = None
    with pytest.raises(RoutedRLError, match="processing_class has no eos token, so no completion would end; set tokenizer.eos"):
        trainer(parts, tmp_path, subspace=subspace, processing_class=tokenizer)
    _, larger = load(parts)
    larger.add_tokens(["more"])
    with pytest.raises(RoutedRLError, match="has the token 'more', id 27, but the model's embedding has 27 rows; .*enlarge"):
        trainer(parts, tmp_path, subspace=subspace, processing_class=larger)
    model.config.name_or_path = ""
    with pytest.raises(RoutedRLError, match="processing_class is not given, and the model has no path from which one could be"):
        trainer(parts, tmp_path, model=model, subspace=subspace, processing_class=None)


def test_practice_without_a_quarantine_is_refused():
    with pytest.raises(RoutedRLError, match="practice.environments=all needs routing.mode=route"):
        RoutingConfig(mode="observe", practice=PracticeConfig(environments="all"))


def test_a_subspace_of_another_model_and_a_model_that_is_routed_already_are_refused(parts, tmp_path):
    other = subspace_of(write_parts(tmp_path / "other", seed=1))
    with pytest.raises(RoutedRLError, match=r"the subspace was extracted from .*other/model .*extract one from"):
        trainer(parts, tmp_path, subspace=other)
    model, _ = load(parts)
    first = trainer(parts, tmp_path, model=model)
    for routing in ({}, {"routing": PLAIN}):
        with pytest.raises(RoutedRLError, match=r"is routed by another trainer; call its quarantine.remove\(\)"):
            trainer(parts, tmp_path, model=model, **routing)
    first.quarantine.remove()
    trainer(parts, tmp_path, model=model)


@pytest.mark.slow
def test_a_model_that_was_compiled_in_place_is_refused_as_a_wrapped_one_is(parts, subspace, tmp_path):
    whole, part = load(parts)[0], load(parts)[0]
    whole.compile(backend="eager")
    part.model.layers[1].compile(backend="eager")
    for model in (whole, part):
        for routing in ({}, {"routing": PLAIN}):
            with pytest.raises(RoutedRLError, match=r"model is compiled, and a compiled model does not .*without compile\(\)"):
                trainer(parts, tmp_path, model=model, subspace=subspace, **routing)


def test_the_folder_of_an_adapter_is_no_model(parts, subspace, tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(RoutedRLError, match=r"adapter' is a PEFT adapter and no whole model; merge it into its base model"):
        trainer(parts, tmp_path / "run", model=str(tmp_path / "adapter"), subspace=subspace)


TINY = {"vocab_size": 99, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}


@pytest.mark.parametrize(("change", "message"), [
    (lambda model: model.to(torch.bfloat16), "weights in bfloat16 are refused, they must be float32.* set args.bf16=true"),
    (lambda _: T5ForConditionalGeneration(T5Config(**TINY)), "t5")])
def test_models_that_cannot_be_routed_are_refused(parts, tmp_path, change, message):
    with pytest.raises(RoutedRLError, match=message):
        trainer(parts, tmp_path, model=change(load(parts)[0]))


def test_functions_that_pay_nothing_end_a_step_and_some_that_do_not_apply_are_counted(parts, tmp_path):
    def never(completions: list[Any], **_: Any) -> list[None]:
        return [None] * len(completions)

    made = trainer(parts, tmp_path, functions=[never, never], args=arguments(tmp_path / "run"))
    with pytest.raises(RoutedRLError, match="step 1: never, never returned None or nan for all 16 completions; return a number"):
        made.train()

    def sometimes(completions: list[Any], environment: list[str], **_: Any) -> list[float | None]:
        return [None if name == "b" else float(place % 3) for place, name in enumerate(environment)]

    made = trainer(parts, tmp_path, functions=sometimes, args=arguments(tmp_path / "some", max_steps=1), routing=SLOWLY)
    made.train()
    assert made.rows[0]["environment/b/failures"] == 8 and "environment/b/reward" not in made.rows[0]


def test_folders_and_checkpoints_that_do_not_fit_are_refused_and_nothing_is_written_over(parts, tmp_path):
    args = arguments(tmp_path / "run", max_steps=2, save_steps=1)
    with pytest.raises(RoutedRLError, match=r"has no whole checkpoint; call train\(\) without"):
        trainer(parts, tmp_path, args=args).train(resume_from_checkpoint=True)
    made = trainer(parts, tmp_path, args=args)
    made.train()
    written = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    for checkpoint, message in ((None, r"holds a run already; go on with `trainer.train\(resume_from_checkpoint=True\)`"),
                                (tmp_path / "step-1", "is no checkpoint of args.output_dir="),
                                (tmp_path / "run" / "checkpoints" / "step-9", "is not whole: there is none; take another"),
                                (tmp_path / "run" / "checkpoints" / "step-1", "step-2 is newer than step-1 in .*; move it away"),
                                (True, "step-2 is the last step of args.max_steps=2, so nothing is left to train; set args.max")):
        with pytest.raises(RoutedRLError, match=message):
            trainer(parts, tmp_path, args=args).train(checkpoint)
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with pytest.raises(RoutedRLError, match="step-2 is the last step"):
        trainer(parts, tmp_path, args=args).train(tmp_path / "link" / "checkpoints" / "step-2")
    made.quarantine.remove()
    with pytest.raises(RoutedRLError, match="the quarantine was removed from the model, so nothing would be routed; make a new"):
        made.train(resume_from_checkpoint=True)
    assert written == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


@pytest.mark.parametrize(("prompts", "settings", "message"), [
    ([], {}, "the list is empty; give pairs"), (["text"], {}, r"pair 1 is 'text', no pair; write \(positive, negative\)"),
    ([("bad add", "")], {}, 'pair 1: "negative" must be text'), (None, {}, "no contrast prompts"),
    ([("bad add", "good add")], {"ranks": 2}, "has no setting ranks; did you mean rank?"),
    ([{"positive": "bad add", "negative": "good add", "kind": 3}], {}, 'pair 1: "kind" must be text, got 3'),
    ([("bad add", "good add")], {"method": "assistant_axis"}, "method=assistant_axis makes its own prompts"),
    ([("bad add", "good add")], {"rank": "2"}, r"extract_subspace: rank must be int \| None, got '2'"),
    ([("bad add", "good add")], {"layout": "shared"}, r"give the trainer bases=SubspaceConfig\(layout=")])
def test_prompts_that_are_none_are_refused(parts, prompts, settings, message):
    with pytest.raises(RoutedRLError, match=message):
        extract_subspace(*load(parts), prompts=prompts, **settings)


def test_a_subspace_is_extracted_from_a_loaded_model_by_its_tokenizer(parts):
    model, tokenizer = load(parts)
    with pytest.raises(RoutedRLError, match="model='name' is a str; give a loaded model, such as AutoModelForCausalLM"):
        extract_subspace("name", tokenizer, [])  # pyright: ignore[reportArgumentType]
    with pytest.raises(RoutedRLError, match="tokenizer=None is a NoneType; give the model's tokenizer"):
        extract_subspace(model, None, [])  # pyright: ignore[reportArgumentType]


def test_a_list_of_pairs_gives_what_the_file_gives(parts):
    pairs = [(f"bad add {a} {b} =", f"good add {a} {b} =") for a in range(4) for b in range(4)]
    ours, theirs = extract_subspace(*load(parts), prompts=pairs, rank=2), subspace_of(parts)
    assert all(map(torch.equal, ours.directions, theirs.directions)) and ours.units.equal(theirs.units)


@pytest.mark.parametrize(("variable", "value", "message"), [
    ("ACCELERATE_MIXED_PRECISION", "fp16", "accelerate is set to mixed_precision=fp16, which scales the gradients .*args.bf16=T"),
    ("ACCELERATE_MIXED_PRECISION", "fp8", "accelerate is set to mixed_precision=fp8")])
def test_settings_of_accelerates_launcher_are_refused_like_arguments(monkeypatch, tmp_path, variable, value, message):
    monkeypatch.setenv(variable, value)
    with pytest.raises(RoutedRLError, match=message):
        check_arguments(arguments(tmp_path))
    check_arguments(arguments(tmp_path, bf16=True))
