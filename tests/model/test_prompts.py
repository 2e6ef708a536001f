"""Prompts: every one that a model cannot be given is an error in one line, and a template's clock is that of the tokenizer."""

from __future__ import annotations

import signal
import time
from datetime import datetime

import pytest
from tokenizers import processors

from routed_rl.errors import ModelError
from routed_rl.model import prompts
from routed_rl.model.chat import ChatTokens
from routed_rl.model.prompts import at_most, encode_prompts, render
from tests.chat import EOS, TEMPLATE, chat_tokenizer

USER = [{"role": "user", "content": "add 1 2"}]


def tokenizer_around(pattern: str):
    """A tokenizer that puts special tokens around a text."""
    tokenizer = chat_tokenizer()
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore
        single=pattern, special_tokens=[("<eos>", EOS), ("<user>", 3)])
    return tokenizer


@pytest.mark.parametrize(("pattern", "before"), [("$A <eos>", []), ("<user> $A <eos>", [3]), ("<user> $A", [3]),
                                                 ("$A <eos> <user>", []), ("<eos> $A <eos>", [EOS])])
def test_nothing_is_put_behind_a_text(pattern, before):
    tokenizer = tokenizer_around(pattern)
    words = tokenizer("good add", add_special_tokens=False)["input_ids"]
    assert encode_prompts(tokenizer, ["good add"]) == [before + words]
    # What the text says itself is the text's.
    assert encode_prompts(tokenizer, ["good <eos>"]) == [[*before, 6, EOS]]
    assert encode_prompts(tokenizer, [USER]) == encode_prompts(chat_tokenizer(), [USER])


@pytest.mark.parametrize("prompt", ["", " ", [], [{"role": "user", "content": ""}], [{"role": "user", "content": None}],
                                    [{"role": "system", "content": ""}, {"role": "user", "content": ""}]])
@pytest.mark.parametrize("pattern", ["$A", "<user> $A <eos>"])
def test_an_empty_prompt_is_refused(prompt, pattern):
    with pytest.raises(ModelError, match="a prompt is empty"):
        encode_prompts(tokenizer_around(pattern), [prompt])


@pytest.mark.parametrize("prompt", [5, None, {"role": "user"}, [{"content": "good"}], ["good"], b"good"])
def test_what_is_no_prompt_is_refused(prompt):
    with pytest.raises(ModelError, match="neither text nor chat messages"):
        encode_prompts(chat_tokenizer(), [prompt])


@pytest.mark.parametrize("prompt", ["good \ud800", [{"role": "user", "content": "good \udfff"}]])
def test_a_lone_surrogate_is_named(prompt):
    with pytest.raises(ModelError, match=r"cannot read .*surrogates not allowed") as error:
        encode_prompts(chat_tokenizer(), [prompt])
    str(error.value).encode()  # the message itself can be shown


def test_a_token_that_the_embedding_does_not_have_is_named():
    tokenizer = chat_tokenizer()
    tokenizer.rows = 19
    for prompt in ("add 9", [{"role": "user", "content": "add 9"}]):
        with pytest.raises(ModelError, match="the token '9', id 19, but the model's embedding has 19 rows"):
            encode_prompts(tokenizer, ["add 8", prompt])


ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(("template", "says"), [
    (ENDLESS, "TimeoutError: it takes more than 0.5 s"), ("{{ 'x' * 3000 }}", "it writes 3000 characters"),
    ("{{ messages.__class__.__mro__ }}", "SecurityError"), ("{{ raise_exception('a system message is needed') }}", "is needed"),
    ("{% for %}", "TemplateSyntaxError"), ("{{ messages[3].content }}", "UndefinedError"), ("{{ 1 / 0 }}", "ZeroDivisionError"),
    ("{{ messages.append(1) }}", "SecurityError"), ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "RecursionError")])
def test_whatever_a_template_does_is_an_error_in_one_line(template, says, monkeypatch):
    monkeypatch.setattr(prompts, "SECONDS", 0.5)
    monkeypatch.setattr(prompts, "CHARACTERS", 2000)
    for call in (lambda chat: encode_prompts(chat.tokenizer, [USER]),
                 lambda chat: chat.between([*USER, {"role": "assistant", "content": "good"}], USER, ())):
        with pytest.raises(ModelError, match=f"cannot show messages of the roles user.*{says}") as error:
            call(ChatTokens(chat_tokenizer(template)))
        assert "\n" not in str(error.value)


def test_an_alarm_of_somebody_else_rings():
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(time.monotonic()))
    began = time.monotonic()
    timer = signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with at_most(60):
            assert not rung
        while not rung and time.monotonic() < began + 5:
            time.sleep(0.01)
        assert 0.09 < rung[0] - began < 5
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, before)


DAY = "{{ strftime_now('%d %b %Y %H') }} "


@pytest.mark.parametrize("place", [DAY, "{% macro day() %}" + DAY + "{% endmacro %}{{ day() }}",
                                   "{% for tool in tools %}" + DAY + "{% endfor %}"])
def test_a_template_is_told_the_tokenizers_date(place):
    tokenizer = chat_tokenizer(place + TEMPLATE)
    tokenizer.clock = datetime(2024, 2, 29, 23, 59)
    assert render(tokenizer, USER, [{"function": {"name": "add"}}]).startswith("29 Feb 2024 23 ")
    assert tokenizer.chat_template == place + TEMPLATE  # what is saved asks for the date of the day it is used
