"""Reasoning in texts of policies and data: taken off, cut, mentioned, in the marks of several model families."""

import pytest

from stagealign.base.reasoning import MARKS, Answer, answer_in_data, answer_of, ends_reasoning, opens_reasoning

PLAIN = ("Lima.", "", "Use `<think>` and `</think>`.", 'The mark "<think>" opens it.', "2 < 3 and 3 > 2", "a\n\nb ")


@pytest.mark.parametrize("read", [answer_of, answer_in_data, lambda text: answer_of(text, thinks=True)])
@pytest.mark.parametrize("text", PLAIN)
def test_texts_without_reasoning_stay_as_they_are(read, text):
    assert read(text) == Answer(text)


@pytest.mark.parametrize("read", [answer_of, answer_in_data, lambda text: answer_of(text, thinks=True)])
@pytest.mark.parametrize(("opening", "closing"), MARKS.items())
def test_a_block_before_the_answer_is_taken_off(read, opening, closing):
    for inside in ("", "\n\n", "\nPeru: Lima or Cusco?\nLima.\n"):
        assert read(f"{opening}{inside}{closing}\n\nLima.") == Answer("Lima.", True)
    assert read(f"{opening}a{closing}Lima. {opening}b") in (Answer("Lima.", True), Answer(f"Lima. {opening}b", True))
    assert read(f"Peru: Lima.\n{closing}\n\nLima.") == Answer("Lima.", True), "the prompt opened it"
    assert read(f"{opening}\nPeru: Lima or") == Answer("", True, finished=False)
    assert read(f"Well.\n{opening}\nPeru: Lima or") == Answer("Well.", True)


@pytest.mark.parametrize("text", ["Peru: Lima", "", "\n"])
def test_a_prompt_that_opens_reasoning_makes_a_text_without_an_end_unfinished(text):
    assert answer_of(text, opened=True) == Answer("", True, finished=False)
    assert answer_of(f"{text}</think>\n\nLima.", opened=True) == Answer("Lima.", True)
    assert answer_of(f"{text}</think>", opened=True) == Answer("", True)
    assert answer_of(f"{text}</think>", opened=True).cut_short(cut=True).finished is False


@pytest.mark.parametrize(
    ("text", "loose", "strict"),
    [("hm</think>ok", "ok", "hm</think>ok"), ("hm<think>ok", "hm", "hm<think>ok"), ("<think>ok", "", "<think>ok")],
)
def test_lone_marks_within_a_line_count_where_the_template_knows_them(text, loose, strict):
    """A random policy without such a template writes them by chance; they stay, and are counted as left."""
    assert answer_of(text, thinks=True).text == loose
    assert (answer_of(text), answer_of(text).marked) == (Answer(strict), True)


def test_data_may_mention_the_marks():
    text = "Put the work between <think> and </think> tags."
    assert answer_in_data(text) == Answer(text)
    assert answer_in_data(text).marked


def test_channels_of_harmony_before_the_final_one_are_reasoning():
    start = "<|channel|>analysis<|message|>Peru: Lima or"
    assert answer_of(start) == Answer("", True, finished=False)
    assert answer_of(f"{start} Cusco?assistant<|channel|>final<|message|>Lima.") == Answer("Lima.", True)


def test_what_opens_and_ends_reasoning():
    assert opens_reasoning("<|im_start|>assistant\n<think>\n")
    assert not opens_reasoning("<think>\n\n</think>\n\n")
    assert ends_reasoning("Peru: Lima.\n</think>\nLima.")
    assert not ends_reasoning("<think>Peru: Lima.\n</think>\nLima.")
