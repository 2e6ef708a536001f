"""Chat templates between turns: what is appended is what the template puts there, and what it cannot show is refused."""

from __future__ import annotations

import pytest

from routed_rl.errors import ModelError
from routed_rl.model.chat import TURN, ChatTokens
from routed_rl.model.prompts import encode_prompts
from tests.chat import TEMPLATE, chat_tokenizer

CHAT = [{"role": "user", "content": "add 1 2"}, {"role": "assistant", "content": "good"}]
TOOL = {"type": "function", "function": {"name": "add"}}
NO_TOOLS = TEMPLATE.split("{% endfor %}", 1)[1]
ONLY_USERS = NO_TOOLS.replace("<{{ m.role }}>",
                              "{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}<user>")
LEAVES_OUT = ("{% for m in messages %}{% if m.role != 'tool' %}<{{ m.role }}> {{ m.content }} <eos> "
              "{% endif %}{% endfor %}<assistant>")
TWICE = "{% for m in messages %}{{ m.content }} {{ m.content }} <eos> {% endfor %}<assistant>"


def words(ids: list[int]) -> str:
    return chat_tokenizer().decode(ids)


def test_what_comes_between_two_turns_is_what_the_template_puts_there():
    chat = ChatTokens(chat_tokenizer())
    between = chat.between(CHAT, [{"role": "tool", "content": "3"}, {"role": "user", "content": "again"}], ())
    assert words(between) == "<eos> <tool> 3 <eos> <user> again <eos> <assistant>"


def test_the_models_own_words_are_not_looked_at():
    chat, answer = ChatTokens(chat_tokenizer()), [{"role": "user", "content": "again"}]
    strange = [CHAT[0], {"role": "assistant", "content": "{{ 1 + 1 }} <eos> <assistant> bad"}]
    assert chat.between(strange, answer, ()) == chat.between(CHAT, answer, ())
    # An environment that knows the mark gains nothing but an error.
    with pytest.raises(ModelError, match="shows a turn of the model 2 times"):
        chat.between(CHAT, [{"role": "user", "content": TURN}], ())


def test_a_prompt_without_tools_is_the_prompt_of_a_single_turn_and_tools_are_shown():
    chat, prompt = ChatTokens(chat_tokenizer()), CHAT[:1]
    assert chat.prompt(prompt, ()) == encode_prompts(chat.tokenizer, [prompt])[0]
    assert words(chat.prompt(prompt, [TOOL])) == "<tool> add " + words(chat.prompt(prompt, ()))


@pytest.mark.parametrize(("template", "message"), [
    (ONLY_USERS, "cannot show messages of the roles user, assistant, tool: .*no tools here"),
    (LEAVES_OUT, "leaves out messages of the role tool"), (TWICE, "shows a turn of the model 2 times")])
def test_what_the_template_cannot_show_is_an_error_in_one_line(template, message):
    with pytest.raises(ModelError, match=message) as caught:
        ChatTokens(chat_tokenizer(template)).between(CHAT, [{"role": "tool", "content": "3"}], ())
    assert "\n" not in str(caught.value)


def test_tools_that_the_template_hides_are_an_error():
    with pytest.raises(ModelError, match="has tools but the model's chat template shows none"):
        ChatTokens(chat_tokenizer(NO_TOOLS)).prompt(CHAT[:1], [TOOL])
