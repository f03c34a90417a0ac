"""Which models can be compared, and what is said of those that can't."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kleash.audit.compare import resolved, sources
from kleash.audit.config import CompareConfig
from kleash.audit.pair import Pair, encode
from kleash.audit.prompts import Prompt
from kleash.audit.sources import find
from kleash.errors import ConfigError, InputError
from kleash.models.chat import Chat
from kleash.models.config import LoraConfig
from kleash.models.hub import load_language_model, save_language_model
from tests.train.small import save_small_model

TEMPLATE = "{% for m in messages %}{{ m['role'][0] }}{{ m['content'] }}{% endfor %}c"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_small_model(tmp_path / "base")


def save_adapter(base: Path, directory: Path) -> Path:
    model = load_language_model(str(base), lora=LoraConfig(rank=2))
    assert model.adapter is not None
    for name, weight in model.adapter.own_weights.items():
        weight.data.normal_(std=0.3 if "lora_B" in name else 0.5)
    save_language_model(model, directory, "", findable=True)
    return directory


def pair_of(policy: Path | str, reference: Path | str) -> Pair:
    return Pair(find(str(policy)), find(str(reference)))


def test_the_first_token_that_differs_is_named(base: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(base, other)
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text.replace('"d": 5', '"D": 5'))
    with pytest.raises(ConfigError, match="don't share a vocabulary") as caught:
        pair_of(base, other)
    assert caught.value.got == "token 5 is 'd' to one and 'D' to the other"


def test_another_number_of_logits_is_another_vocabulary(base: Path, tmp_path: Path) -> None:
    model = load_language_model(str(base))
    model.model.resize_token_embeddings(12)
    save_language_model(model, tmp_path / "wider", "")
    with pytest.raises(ConfigError, match="don't share a vocabulary") as caught:
        pair_of(base, tmp_path / "wider")
    assert caught.value.got == "10 logits against 12"


def test_an_adapter_is_compared_with_its_base_in_the_same_memory(
    base: Path, tmp_path: Path
) -> None:
    adapter = save_adapter(base, tmp_path / "adapter")
    policy, reference = sources(CompareConfig(policy=str(adapter), prompts="-"))
    assert (policy.kind, reference.load) == ("adapter", str(base))
    pair = Pair(policy, reference)
    assert pair.policy().model is pair.reference().model
    assert pair.reference().digest() == load_language_model(str(base)).digest()
    assert pair.policy().digest() != pair.reference().digest()
    ids = torch.tensor([[2, 3]])
    own, theirs = (
        model.hidden(ids, torch.ones_like(ids), torch.tensor([[4, 5]]))
        for model in (pair.policy(), pair.reference())
    )
    assert not torch.allclose(own, theirs)


def test_an_adapter_of_another_base_is_refused(base: Path, tmp_path: Path) -> None:
    """peft passes over matrices that have no layer, and what is left would be measured."""
    adapter = save_adapter(base, tmp_path / "adapter")
    weights = load_file(adapter / "adapter_model.safetensors")
    name = next(iter(weights))
    weights[name.replace("layers.0", "layers.1")] = weights[name].clone()
    save_file(weights, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="is not one of"):
        load_language_model(str(adapter))
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "tiny-reviews/base"
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="cannot load"):
        load_language_model(str(adapter))


def test_a_base_that_is_gone_is_said_to_be_gone(base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(base, tmp_path / "adapter")
    shutil.rmtree(base)
    policy, reference = find(str(adapter)), find(str(adapter))
    with pytest.raises(InputError, match="no model directory"):
        Pair(policy, reference)


def test_a_truncated_file_is_bad_input(base: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(base, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match="cannot load"):
        pair_of(broken, base)


def test_pickled_weights_are_not_opened(base: Path, tmp_path: Path) -> None:
    pickled = tmp_path / "pickled"
    shutil.copytree(base, pickled)
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    with pytest.raises(InputError, match="pickled"):
        pair_of(pickled, base)


def test_nothing_is_its_own_reference_but_adapters_and_runs(base: Path) -> None:
    with pytest.raises(InputError, match="nothing to compare"):
        sources(CompareConfig(policy=str(base), prompts="-"))


def test_a_prompt_has_to_fit_the_shorter_context(base: Path, tmp_path: Path) -> None:
    shorter = tmp_path / "shorter"
    shutil.copytree(base, shorter)
    config = json.loads((shorter / "config.json").read_text())
    (shorter / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 16}))
    pair = pair_of(base, shorter)
    assert encode(pair, [Prompt("a" * 12)], 4, None) == [[2] * 12]
    with pytest.raises(InputError, match="longer than a context") as caught:
        encode(pair, [Prompt("a" * 13)], 4, None)
    assert "at most 12 tokens" in caught.value.expected


def test_a_response_of_either_ends_where_one_of_either_would(base: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(base, other)
    generation = json.loads((other / "generation_config.json").read_text())
    (other / "generation_config.json").write_text(
        json.dumps({**generation, "eos_token_id": [0, 7]})
    )
    pair = pair_of(base, other)
    assert pair.policy().eos_ids == pair.reference().eos_ids == [0, 7]


def test_conversations_are_put_in_the_policys_template(base: Path) -> None:
    pair = pair_of(base, base)
    with pytest.raises(ConfigError, match="no chat template"):
        encode(pair, [Prompt("a")], 2, Chat())
    pair.tokenizer.chat_template = TEMPLATE
    turns = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
    talk = Prompt("d", None, (*turns, {"role": "user", "content": "d"}))
    unknown = pair.tokenizer.unk_token_id
    plain, put, whole = (
        encode(pair, [prompt], 2, chat)[0]
        for prompt, chat in ((Prompt("a"), None), (Prompt("a"), Chat()), (talk, None))
    )
    assert plain == [2]
    assert put == [unknown, 2, 4]
    assert whole == [unknown, 2, 2, 3, unknown, 5, 4]  # "ua" "ab" "ud" "c"
    with_system = encode(pair, [talk], 2, Chat("e"))[0]
    assert with_system == [unknown, 6, *whole]


def test_a_runs_settings_are_the_defaults_and_no_more(base: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    save_language_model(load_language_model(str(base)), run / "final", "")
    (run / "ledger").mkdir()
    from kleash.audit.sources import Source

    settings = {
        "model": {"policy": str(base), "chat": False},
        "data": {"prompts": "tiny-reviews/prompts"},
        "rollout": {"temperature": 0.7, "max_new_tokens": 5},
    }
    source = Source(name="run", load=str(run / "final"), kind="run", settings=settings)
    found = resolved(CompareConfig(policy="run"), source)
    assert (found.prompts, found.temperature, found.max_new_tokens) == (
        "tiny-reviews/prompts",
        0.7,
        5,
    )
    assert source.own_reference == str(base)
    own = resolved(
        CompareConfig(policy="run", temperature=1.0, prompts="x", max_new_tokens=9), source
    )
    assert (own.prompts, own.temperature, own.max_new_tokens) == ("x", 1.0, 9)
    blend = {**settings, "model": {"policy": "a", "reference": {"a": 0.5, "b": 0.5}}}
    with pytest.raises(InputError, match="blend of 2"):
        _ = Source(name="run", load="-", kind="run", settings=blend).own_reference
