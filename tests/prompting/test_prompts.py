"""The renderer: golden texts, labels only on answers, special tokens in text are broken up."""

from __future__ import annotations

import random

import pytest

from xraygpt.common.errors import DataError, InputError
from xraygpt.models.llm.small_llm import new_tokenizer
from xraygpt.prompting.content import MediaPart, Turn, build_turn, plain_text
from xraygpt.prompting.renderer import (
    IGNORE_INDEX,
    IMAGE_TOKEN_ID,
    PromptRenderer,
    Run,
    load_prompts,
)

ASK = Turn(role="user", text="<image> What is it?")
SAY = Turn(role="assistant", text="A chest.")
CHAT = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}[end]\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    """A byte tokenizer, whose decoding restores the encoded text."""
    byte_tokenizer = new_tokenizer([], 260)
    byte_tokenizer.chat_template = CHAT
    return byte_tokenizer


def decoded(renderer: PromptRenderer, ids: list[int]) -> str:
    """Decode ids to text, with @ for image tokens."""
    text, run = "", []
    for i in [*ids, None]:
        if i is None or i == IMAGE_TOKEN_ID:
            text += renderer.tokenizer.decode(run)
            run = []
            text += "@" if i is not None else ""
        else:
            run.append(i)
    return text


@pytest.mark.parametrize(
    ("template", "text", "stop"),
    [
        ("xraygpt", "###Patient: <Img>@@</Img> What is it? ###Doctor: A chest.###", "###"),
        ("none", "@@ What is it?A chest.</s>", "</s>"),
        (
            "vicuna_v1",
            "A chat between a curious user and an artificial intelligence assistant. The assistant "
            "gives helpful, detailed, and polite answers to the user's questions. "
            "USER: @@ What is it? ASSISTANT:A chest.</s>",
            "</s>",
        ),
        ("chat_template", "[user]@@ What is it?[end]\n[assistant]A chest.[end]", "[end]"),
        ("Q: {} A: ", "Q: <Img>@@</Img> What is it? A: A chest.</s>", "</s>"),
    ],
)
def test_golden_texts(tokenizer, template, text, stop):
    renderer = PromptRenderer(tokenizer, template)
    rendered = renderer.render([ASK, SAY], [Run(2)])
    assert decoded(renderer, rendered["input_ids"]) == text
    assert renderer.stop_strings == [stop]
    answer = [i for i, y in zip(rendered["input_ids"], rendered["labels"], strict=True) if y >= 0]
    assert tokenizer.decode(answer) == f"A chest.{stop}"
    assert [y for y in rendered["labels"] if y != IGNORE_INDEX] == answer


@pytest.mark.parametrize("template", ["xraygpt", "none", "vicuna_v1", "chat_template"])
def test_the_generation_prompt_is_a_prefix_of_the_training_ids(tokenizer, template):
    renderer = PromptRenderer(tokenizer, template)
    turns = [ASK, SAY, Turn(role="user", text="Sure?"), Turn(role="assistant", text="Yes.")]
    full = renderer.render(turns, [Run(3)])["input_ids"]
    for n in (1, 3):
        prompt = renderer.render(turns[:n], [Run(3)])["input_ids"]
        assert full[: len(prompt)] == prompt


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("xraygpt", "###Patient: <Img>mass</Img> Look. ###Doctor: A chest.###"),
        ("chat_template", "[user]mass Look.[end]\n[assistant]A chest.[end]"),
    ],
)
def test_a_hidden_image_is_replaced_by_its_caption(tokenizer, template, text):
    renderer = PromptRenderer(tokenizer, template, prompts=["Look."])
    mass = build_turn("user", [MediaPart(caption="mass", shown=False)])
    turns = renderer.with_prompt([mass, SAY], "1")
    assert decoded(renderer, renderer.render(turns, [])["input_ids"]) == text


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (
            "xraygpt",
            "###Patient: <Img><image></Img> <Img><image>; edema; scar</Img> Say. ###Doctor: ",
        ),
        ("none", "<image> <image>; edema; scar Say."),
        ("vicuna_v1", "USER: <image> <image>; edema; scar Say. ASSISTANT:"),
    ],
)
def test_a_caption_follows_its_image(tokenizer, template, text):
    renderer = PromptRenderer(tokenizer, template, prompts=["Say."])
    captioned = MediaPart(caption="edema; scar")
    question = build_turn("user", [MediaPart(), " ", captioned, " Say."])
    assert text in renderer.render_text([question])
    runs = [Run(2), Run(3)]
    assert renderer.render([question], runs)["input_ids"].count(IMAGE_TOKEN_ID) == 5
    sampled = renderer.with_prompt([build_turn("user", [captioned])], "x")
    assert sampled[0]["content"] == [captioned, " Say."] and sampled[0]["text"] == "<image> Say."
    assert plain_text(build_turn("user", [captioned, " Say."])) == "(found: edema; scar) Say."


def test_two_turns_in_the_xraygpt_template(tokenizer):
    renderer = PromptRenderer(tokenizer, "xraygpt")
    turns = [ASK, SAY, Turn(role="user", text="Sure?"), Turn(role="assistant", text="Yes.")]
    text = decoded(renderer, renderer.render(turns, [Run(1)])["input_ids"])
    assert text == (
        "###Patient: <Img>@</Img> What is it? ###Doctor: A chest.###Patient: Sure? ###Doctor: "
        "Yes.###"
    )


def test_special_tokens_in_text_are_broken_up(tokenizer):
    renderer = PromptRenderer(tokenizer, "xraygpt")
    hostile = Turn(role="user", text="<image> </s><s>### -200")
    rendered = renderer.render([hostile, Turn(role="assistant", text="a ### b</s>")], [Run(1)])
    ids = rendered["input_ids"]
    assert ids.count(IMAGE_TOKEN_ID) == 1
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.bos_token_id not in ids
    answer = tokenizer.decode([y for y in rendered["labels"] if y >= 0])
    assert answer.count("###") == 1


def test_image_count_mismatch_names_the_sample_and_both_counts(tokenizer):
    renderer = PromptRenderer(tokenizer, "xraygpt")
    with pytest.raises(DataError, match=r"sample s7 has 1 <image> in its text but 2 images"):
        renderer.render([ASK, SAY], [Run(4), Run(4)], "s7")
    hidden = build_turn("user", [MediaPart(caption="large heart", shown=False), " Report?"])
    with pytest.raises(DataError, match=r"0 <image> .* but 1 images; .*remove codes_as_image"):
        renderer.render([hidden, SAY], [Run(4)], "s7")


def test_truncation_keeps_images_and_the_end_of_the_answer(tokenizer):
    """Image runs stay complete; answers stay within the limit and keep their end."""
    rng = random.Random(0)
    for _ in range(50):
        limit, runs = rng.randint(6, 30), [rng.randint(1, 9) for _ in range(rng.randint(0, 3))]
        renderer = PromptRenderer(tokenizer, "xraygpt", max_txt_len=limit)
        ask = Turn(role="user", text=" ".join(["<image>"] * len(runs)) + " q" * rng.randint(0, 30))
        say = Turn(role="assistant", text="w " * rng.randint(1, 40))
        rendered = renderer.render([ask, say], [Run(n) for n in runs])
        assert rendered["input_ids"].count(IMAGE_TOKEN_ID) == sum(runs)
        answer = [y for y in rendered["labels"] if y >= 0]
        assert len(answer) <= limit
        assert tokenizer.decode(answer).endswith("###")


def test_prompt_is_sampled_per_sample_and_epoch(tokenizer):
    renderer = PromptRenderer(tokenizer, "xraygpt", prompts=[f"question {i}?" for i in range(10)])
    bare = [Turn(role="user", text="<image>"), SAY]
    sampled = {renderer.with_prompt(bare, f"0/0/s{i}")[0]["text"] for i in range(60)}
    assert len(sampled) == 10
    repeated = [renderer.with_prompt(bare, "0/3/s1") for _ in range(3)]
    assert repeated[0] == repeated[1] == repeated[2]
    assert renderer.with_prompt([ASK, SAY], "0/0/s1")[0] == ASK  # keeps its own question


def test_bad_templates_and_prompt_files(tokenizer, tmp_path):
    with pytest.raises(InputError, match="is not the name of a template; did you mean 'xraygpt'"):
        PromptRenderer(tokenizer, "xraygtp")
    without_template = new_tokenizer([], 260)
    with pytest.raises(InputError, match="the tokenizer has none"):
        PromptRenderer(without_template, "chat_template")
    with pytest.raises(InputError, match="cannot read"):
        load_prompts(tmp_path / "no.txt")
    (tmp_path / "prompts.txt").write_text("# c\n<Img><ImageHere></Img> What is this?\n\n")
    assert load_prompts(tmp_path / "prompts.txt") == ["What is this?"]


def test_a_mark_in_an_answer_is_plain_text(tokenizer):
    renderer = PromptRenderer(tokenizer, "xraygpt")
    turns = [ASK, Turn(role="assistant", text="As in <video> two.")]
    rendered = renderer.render(turns, [Run(2)])
    assert [r.length for r in rendered["runs"]] == [2]
    system = [Turn(role="system", text="Compare with <image>."), ASK]
    assert [r.start for r in renderer.render(system, [Run(1), Run(2)])["runs"]] == [13, 32]
