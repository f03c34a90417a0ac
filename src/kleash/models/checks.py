"""What a model is tried for as it is loaded, on a handful of tokens: its head, its past, and whether padding can go."""

from dataclasses import replace

import torch
from torch import Tensor

from kleash.errors import InputError
from kleash.models.policy import LanguageModel
from kleash.models.unpadded import unpad


def check_head(language_model: LanguageModel) -> None:
    """Proves on two tokens that `head(hidden)` gives the model's own logits.

    Raises:
        InputError: the architecture does something more between its last hidden state and its logits, or these are no
            numbers.
    """
    ids = torch.tensor([[1, 2]], device=language_model.device)
    ones = torch.ones_like(ids)
    with torch.no_grad():
        own = language_model.model(input_ids=ids, attention_mask=ones).logits[0, :1].float()
        ours = language_model.head(language_model.hidden(ids[:, :1], ones[:, :1], ids[:, 1:])[0])
    if bool(own.isnan().any()):
        raise InputError(
            f"the weights of {language_model.name} are not all numbers",
            expected="finite numbers in its files",
            got=f"NaN in {int(own.isnan().sum())} of {own.numel()} logits",
            do="fetch or save the model again",
        )
    # What two orders of the same sums may differ by, in the precision of the weights.
    rounding = max(1e-4, 2.0 * torch.finfo(language_model.head.weight.dtype).eps)
    if not torch.allclose(own, ours, rtol=rounding, atol=rounding):
        raise InputError(
            f"the architecture of {language_model.name} is not supported",
            expected="logits that are the head's product with the last hidden state",
            got=f"{type(language_model.model).__name__}, which differs by {(own - ours).abs().max():.3g}",
            do="use another model; Llama, Qwen, Mistral, Gemma and GPT-2 families are",
        )


def check_past(language_model: LanguageModel) -> None:
    """Proves on a few tokens that sampling a token at a time, behind padding, is the same as one pass without it.

    Raises:
        InputError: what the architecture keeps of its past is changed by padding, or can't be gone on with.
    """
    ids = torch.tensor([[0, 0, 1, 2, 3], [1, 2, 3, 4, 1]], device=language_model.device)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]], device=language_model.device)
    model = language_model.model
    with torch.no_grad(), language_model.speaking():
        try:
            found = _token_by_token(language_model, ids, mask).float()
        except (AttributeError, TypeError, ValueError, RuntimeError) as error:
            got = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
        else:
            rows = zip(ids, mask.bool(), strict=True)
            alone = [model(input_ids=row[real].unsqueeze(0)).logits[0, -2:] for row, real in rows]
            expected = torch.stack(alone).float()
            rounding = max(1e-3, 8.0 * torch.finfo(language_model.dtype).eps)
            scale = float(expected.abs().max())
            if torch.allclose(found, expected, rtol=rounding, atol=rounding * scale):
                return
            got = f"logits that differ by {(found - expected).abs().max():.3g}"
    raise InputError(
        f"the architecture of {language_model.name} can't be sampled from",
        expected="a past that can be gone on with token by token, and that padding on the left leaves as it is",
        got=f"{type(model).__name__}: {got}",
        do="use another model; Llama, Qwen, Mistral, Gemma and GPT-2 families are",
    )


def _token_by_token(language_model: LanguageModel, ids: Tensor, mask: Tensor) -> Tensor:
    """Logits [B, 2, V] behind the last two tokens, of which the last is read with the past of those before it."""
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    cache, length = language_model.new_cache(ids.shape[1]), ids.shape[1]
    steps = [
        language_model.next_logits(
            cache,
            input_ids=ids[:, given],
            attention_mask=mask[:, : given.stop],
            position_ids=places[:, given],
        )
        for given in (slice(0, length - 1), slice(length - 1, length))
    ]
    return torch.stack(steps, 1)


def can_unpad(language_model: LanguageModel) -> bool:
    """Whether hidden states are the same where a batch is one row of tokens: it is tried.

    Not so of architectures whose past is more than keys and values, whose attention transformers can't replace, or
    whose layers look back so far and no further without saying so when attention is asked for.
    """
    config = language_model.model.config
    kinds = {*(getattr(config, "layer_types", None) or [])}
    if not kinds <= {"full_attention", "sliding_attention"}:
        return False
    device = language_model.device
    prompts = torch.tensor([[1, 2, 3], [1, 2, 3], [0, 1, 4]], device=device)
    mask = torch.tensor([[1, 1, 1], [1, 1, 1], [0, 1, 1]], dtype=torch.bool, device=device)
    responses = torch.tensor([[1, 2, 4], [3, 4, 1], [3, 1, 0]], device=device)
    real = responses > 0
    row, rows = unpad(prompts, mask, responses, real), replace(language_model, unpads=False)
    with torch.no_grad():
        expected = rows.hidden(prompts, mask, responses)[real]
        try:
            with language_model.speaking():
                found = language_model.of_row(row)[real]
        except (AttributeError, TypeError, ValueError, RuntimeError):
            return False
    # No trial could be longer than every window there is: what is asked for is looked at.
    slides = "sliding_attention" in kinds or getattr(config, "sliding_window", None) is not None
    if slides and not any(window is not None for window, _ in row.layout.masks):
        return False
    rounding = max(1e-3, 8.0 * torch.finfo(language_model.dtype).eps)
    scale = float(expected.abs().max())
    return torch.allclose(found, expected, rtol=rounding, atol=rounding * scale)
