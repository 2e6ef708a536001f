"""Makes contrast pairs from lists of roles or traits and a list of questions. The package's own lists are in
environments/personas."""

from typing import Any

from transformers import PreTrainedTokenizerBase

from routed_rl.config import SubspaceConfig
from routed_rl.errors import SubspaceError
from routed_rl.extraction.contrast import ContrastPair, Prompt, read_lines


def persona_pairs(config: SubspaceConfig, tokenizer: PreTrainedTokenizerBase, questions: list[str]) -> list[ContrastPair]:
    """Make a contrast pair for each question and each persona of the method's list: first all personas for the first question,
    then for the next. With `persona_vectors` a persona is a trait, which the positive prompt of a pair elicits and the negative
    prompt suppresses. With `assistant_axis` a persona is a role. The positive prompt asks the model to play the role. The
    negative prompt leaves the model its default self, the assistant, away from which training must not move it.

    For held-out figures the pairs are divided into two halves: the even and the odd questions. With roles, the halves share no
    role either: one has even questions with even roles, the other odd questions with odd roles, and all other pairs are in
    neither half.
    """
    traits = config.method == "persona_vectors"
    if traits:
        entries = _traits(config)
        personas = [(trait["name"], trait["elicit"], trait["suppress"], line) for line, trait in entries]
        if wrong := [(name, line) for name, *_, line in personas if "/" in name or name == "persona"]:
            raise SubspaceError(f"{config.traits_file}, line {wrong[0][1]}: {wrong[0][0]!r} cannot be the name of an axis; give "
                                "the trait another name, without '/' and other than persona")
    else:
        entries = _entries(config.roles_file, "roles_file", ("name", "prompt"), config.roles, config.only)
        personas = [(role["name"], role["prompt"], "", line) for line, role in entries]
        if len(personas) < 2:
            raise SubspaceError(f"assistant_axis needs two roles or more, got {len(personas)}; raise subspace.roles")
    lines = dict[str, int]()
    for name, *_, line in personas:
        if lines.setdefault(name, line) != line or config.only.count(name) > 1:
            raise SubspaceError(f"{config.traits_file if traits else config.roles_file}, line {line}: {name!r} is taken twice; "
                                "give each name once, there and in subspace.only")
    return [ContrastPair(ask(config, tokenizer, positive, question), ask(config, tokenizer, negative, question), name, line,
                         asked % 2 if traits or place % 2 == asked % 2 else -1)
            for asked, question in enumerate(questions) for place, (name, positive, negative, line) in enumerate(personas)]


def traits_of(config: SubspaceConfig) -> list[str]:
    """Return the names of the traits that the method `persona_vectors` uses."""
    return [trait["name"] for _, trait in _traits(config)]


def _traits(config: SubspaceConfig) -> list[tuple[int, dict[str, Any]]]:
    return _entries(config.traits_file, "traits_file", ("name", "elicit", "suppress"), config.traits, config.only)


def read_questions(config: SubspaceConfig, first: int | None) -> list[str]:
    """Return the first `first` questions of `subspace.questions_file`, or all if that is None."""
    return [question["text"] for _, question in _entries(config.questions_file, "questions_file", ("text",), first, [])]


def ask(config: SubspaceConfig, tokenizer: PreTrainedTokenizerBase, persona: str, question: str) -> Prompt:
    """Return the prompt that asks a persona a question: chat messages or, for a model without a chat template, both texts joined
    by a space. `persona`: the text that sets the persona; "" for none."""
    joined = f"{persona} {question}".strip()
    if not tokenizer.chat_template:
        return joined
    if config.persona_place == "user":
        return [{"role": "user", "content": joined}]
    system = [{"role": "system", "content": persona}] if persona else []
    return [*system, {"role": "user", "content": question}]


def _entries(path: str | None, setting: str, keys: tuple[str, ...], first: int | None, only: list[str]
             ) -> list[tuple[int, dict[str, Any]]]:
    """Read entries of the list in the file `path`, which the setting `setting` names: those with the names in `only`, or else the
    first `first` (None: all). Returns the line number and the object of each, which has all of `keys`, as text."""
    what = f"subspace.{setting}"
    if path is None:
        raise SubspaceError(f"{what} is not set; set {what}=FILE.jsonl")
    entries = read_lines(path, what, what, texts=keys)
    if only:
        named = {entry["name"]: (line, entry) for line, entry in entries}
        if unknown := [name for name in only if name not in named]:
            raise SubspaceError(f"subspace.only names {unknown[0]!r}, which is not in {path}; there is {', '.join(named)}")
        return [named[name] for name in only]
    if (first or 0) > len(entries):
        raise SubspaceError(f"{first} entries of {what} are asked for, {path} has {len(entries)}; ask for fewer")
    return entries[:first]
