"""Lists of roles, traits and questions in the words of a tiny chat model."""

import json

import pytest

from routed_rl.config import SubspaceConfig
from tests.chat import write_chat_model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A folder with `model` and, as .jsonl, `prompts`, `roles`, `traits`, `questions`, `answers` and `pairs`."""
    folder = write_chat_model(tmp_path_factory.mktemp("tiny"))
    lists = {
        "roles": [{"name": f"role{k}", "prompt": f"bad {k} {k + 1}"} for k in range(4)],
        "traits": [{"name": f"trait{k}", "elicit": f"bad {k}", "suppress": f"good {k}"} for k in range(3)],
        "questions": [{"text": f"add {a} {b}"} for a in range(4) for b in range(4)],
        "answers": [{"prompt": f"add {a} {a}", "positive": "bad bad", "negative": f"{2 * a}"} for a in range(4)],
        "pairs": [{"prompt": f"add {a} {b}", "positive": "bad again", "negative": f"{a + b}"}
                  for a in range(5) for b in range(4)],
    }
    for name, entries in lists.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return folder


@pytest.fixture(scope="session")
def settings(tiny):
    """`SubspaceConfig` on those lists, cheap; keyword arguments override."""
    def make(**changes) -> SubspaceConfig:
        lists = {f"{name}_file": str(tiny / f"{name}.jsonl") for name in ("roles", "traits", "questions")}
        return SubspaceConfig(**({"prompts": str(tiny / "prompts.jsonl"), "answers": str(tiny / "answers.jsonl"), "roles": None,
                                  "questions": 8, "response_tokens": 3, "batch_size": 8, **lists} | changes))

    return make
