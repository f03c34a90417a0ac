"""A response's text is what it adds to its prompt, whatever the tokenizer's decoder does to the beginning of a text."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from kleash.models.hub import load_language_model
from kleash.models.policy import LanguageModel
from kleash.rollout.config import RolloutConfig
from kleash.rollout.sampler import decode_responses, sample

WORDS = ["▁the", "▁film", "▁is", "▁good", "▁bad", "ly", "▁", "!"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


@pytest.fixture
def metaspace() -> PreTrainedTokenizerFast:
    """Words that carry the space before them, and bytes for the rest: the scheme of Llama 2 and Mistral."""
    vocabulary = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *WORDS, *BYTES])}
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>", ignore_merges=True
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def ids(tokenizer: PreTrainedTokenizerFast, *tokens: str) -> list[int]:
    vocabulary = tokenizer.get_vocab()
    return [vocabulary[token] for token in tokens]


@pytest.mark.parametrize(
    ("response", "text"),
    [
        (["▁good", "</s>"], " good"),
        (["▁good", "▁film", "!"], " good film!"),
        (["ly", "▁good"], "ly good"),
        (["▁", "▁good"], "  good"),
        (["</s>"], ""),
        ([], ""),
        (["<0xC3>", "<0xA9>"], "é"),
    ],
)
def test_prompt_and_response_together_are_the_text(
    metaspace: PreTrainedTokenizerFast, response: list[str], text: str
) -> None:
    prompt = [*ids(metaspace, "<s>"), *metaspace("the film is")["input_ids"]]
    assert decode_responses(metaspace, [prompt], [ids(metaspace, *response)]) == [text]


def test_the_space_is_lost_where_the_response_is_decoded_alone(
    metaspace: PreTrainedTokenizerFast,
) -> None:
    """What this tokenizer is here to show: without it the tests above would prove nothing."""
    assert metaspace.decode(ids(metaspace, "▁good")) == "good"


def test_a_whole_that_does_not_begin_with_its_prompt_is_decoded_apart(
    metaspace: PreTrainedTokenizerFast,
) -> None:
    """Bytes are decoded run by run, and one that fits no character spoils the run that the prompt ended with."""
    prompt = ids(metaspace, "▁the", "▁", "<0xC3>", "<0xA9>")
    assert metaspace.decode(prompt) == "the é"
    responses = [ids(metaspace, "<0xA9>", "▁good"), ids(metaspace, "▁good")]
    assert decode_responses(metaspace, [prompt], responses) == ["� good", " good"]


def test_each_response_is_cut_at_its_own_prompt(metaspace: PreTrainedTokenizerFast) -> None:
    prompts = [ids(metaspace, "▁the"), ids(metaspace, "▁the", "▁film")]
    responses = [ids(metaspace, *row) for row in (["▁film"], ["▁bad"], ["▁is"], ["▁good"])]
    assert decode_responses(metaspace, prompts, responses) == [" film", " bad", " is", " good"]


def test_a_byte_level_tokenizer_decodes_as_if_alone() -> None:
    """On any tokens at all, the halves of characters among them."""
    tokenizer = load_language_model("tiny-reviews/base").tokenizer
    prompts = [tokenizer(text)["input_ids"] for text in ("the film is", "naïve", " 漢", "it 's ")]
    responses = torch.randint(len(tokenizer), (64, 12)).tolist()
    alone = [
        tokenizer.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for row in responses
    ]
    assert decode_responses(tokenizer, prompts, responses) == alone


def test_sampled_responses_keep_the_space_behind_their_prompt(
    metaspace: PreTrainedTokenizerFast,
) -> None:
    """A model that says nothing but words: each of its responses starts with a space."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(metaspace),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config).eval()
    words = ids(metaspace, "▁the", "▁film", "▁is", "▁good", "▁bad")
    head = torch.nn.Linear(8, len(metaspace))
    head.weight.data.zero_()
    head.bias.data.fill_(-100.0)
    head.bias.data[words] = 0.0
    model.lm_head = head
    policy = LanguageModel("metaspace", model, metaspace)
    rollout = sample(
        policy,
        ["the film is", "the film is good"],
        RolloutConfig(num_prompts=2, group_size=8, max_new_tokens=3),
        torch.Generator().manual_seed(0),
    )
    for prompt, response in zip(rollout.prompts, rollout.responses, strict=True):
        assert [f"▁{word}" in WORDS for word in (prompt + response).split(" ")] == [True] * (
            len(prompt.split()) + 3
        )


def test_normalised_prompts_do_not_shift_the_cut(metaspace: PreTrainedTokenizerFast) -> None:
    """The cut is made in what was decoded, not in the prompt as it was written."""
    metaspace.backend_tokenizer.normalizer = normalizers.Lowercase()
    prompt = metaspace("The FILM is")["input_ids"]
    assert decode_responses(metaspace, [prompt], [ids(metaspace, "▁good")]) == [" good"]
