"""Roles and traits asked questions: contrast pairs made of lists. The package's own lists are in environments/personas."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from routed_rl.config import SubspaceConfig
from routed_rl.errors import SubspaceError
from routed_rl.extraction.contrast import ContrastPair, Prompt, read_lines


def role_pairs(config: SubspaceConfig, tokenizer: PreTrainedTokenizerBase) -> list[ContrastPair]:
    """Every role (positive: what must not grow is leaving the assistant) and the model's default self, per question.

    Held-out figures come from roles *and* questions that the other half has not seen: even ones against odd ones.
    """
    roles = _entries(config.roles_file, "roles_file", ("name", "prompt"), config.roles, config.only)
    if len(roles) < 2:
        raise SubspaceError(f"assistant_axis needs two roles or more, got {len(roles)}; raise subspace.roles")
    return [ContrastPair(_asked(config, tokenizer, role["prompt"], question), _asked(config, tokenizer, "", question),
                         role["name"], line, place % 2 if place % 2 == asked % 2 else -1)
            for asked, question in enumerate(_questions(config)) for place, (line, role) in enumerate(roles)]


def trait_pairs(config: SubspaceConfig, tokenizer: PreTrainedTokenizerBase) -> list[ContrastPair]:
    """Every trait elicited (positive) and suppressed, per question; halves are even questions against odd ones."""
    traits = _entries(config.traits_file, "traits_file", ("name", "elicit", "suppress"), config.traits, config.only)
    return [ContrastPair(_asked(config, tokenizer, trait["elicit"], question),
                         _asked(config, tokenizer, trait["suppress"], question), trait["name"], line, asked % 2)
            for asked, question in enumerate(_questions(config)) for line, trait in traits]


def spare_questions(config: SubspaceConfig) -> list[str]:
    """The questions of the file that an extraction does not use."""
    return [question["text"] for _, question in _entries(config.questions_file, "questions_file", ("text",), None, [])
            ][config.questions:]


def unasked_pairs(config: SubspaceConfig, tokenizer: PreTrainedTokenizerBase, most: int) -> list[tuple[str, ContrastPair]]:
    """(question, pair) for at most `most` questions that the extraction does not use; roles or traits take turns."""
    questions = spare_questions(config)[:most]
    if config.method == "assistant_axis":
        roles = _entries(config.roles_file, "roles_file", ("name", "prompt"), config.roles, config.only)
        personas = [(role["name"], role["prompt"], "", line) for line, role in roles]
    else:
        traits = _entries(config.traits_file, "traits_file", ("name", "elicit", "suppress"), config.traits, config.only)
        personas = [(trait["name"], trait["elicit"], trait["suppress"], line) for line, trait in traits]
    taken = [(question, personas[place % len(personas)]) for place, question in enumerate(questions)]
    return [(question, ContrastPair(_asked(config, tokenizer, positive, question), _asked(config, tokenizer, negative, question),
                                    name, line)) for question, (name, positive, negative, line) in taken]


def neutral(config: SubspaceConfig, tokenizer: PreTrainedTokenizerBase, question: str) -> Prompt:
    """A question to the model's default self."""
    return _asked(config, tokenizer, "", question)


def _questions(config: SubspaceConfig) -> list[str]:
    return [question["text"] for _, question in
            _entries(config.questions_file, "questions_file", ("text",), config.questions, [])]


def _asked(config: SubspaceConfig, tokenizer: PreTrainedTokenizerBase, persona: str, question: str) -> Prompt:
    """Chat messages; for a model without a chat template text, persona and question joined by a space."""
    joined = f"{persona} {question}".strip()
    if not tokenizer.chat_template:
        return joined
    if config.persona_place == "user":
        return [{"role": "user", "content": joined}]
    system = [{"role": "system", "content": persona}] if persona else []
    return [*system, {"role": "user", "content": question}]


def _entries(path: str | None, setting: str, keys: tuple[str, ...], first: int | None, only: list[str]
             ) -> list[tuple[int, dict[str, Any]]]:
    """Line and object of the chosen entries of a list; each has every key of `keys`, as text."""
    what = f"subspace.{setting}"
    if path is None:
        raise SubspaceError(f"{what} is not set; set {what}=FILE.jsonl")
    entries = read_lines(path, what, what)
    for line, entry in entries:
        if wrong := [key for key in keys if not (isinstance(entry.get(key), str) and entry[key])]:
            raise SubspaceError(f"{what} {path}, line {line} has no text \"{wrong[0]}\" (it has: "
                                f"{', '.join(entry) or 'nothing'})")
    if only:
        named = {entry["name"]: (line, entry) for line, entry in entries}
        if unknown := [name for name in only if name not in named]:
            raise SubspaceError(f"subspace.only names {unknown[0]!r}, which is not in {path}; there is {', '.join(named)}")
        return [named[name] for name in only]
    if (first or 0) > len(entries) or not entries:
        raise SubspaceError(f"{first} entries of {what} are asked for, {path} has {len(entries)}; ask for fewer")
    return entries[:first]
