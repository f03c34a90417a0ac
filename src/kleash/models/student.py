"""An untaught language model of another size, with the vocabulary of one that is to teach it."""

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from kleash.models.policy import LanguageModel

WIDTH_OF_HEAD = 64
"""Of attention."""
FORWARD = 8 / 3
"""Width of the feed-forward layers over the model's own, as Llama has it."""


def new_student(
    teacher: LanguageModel, width: int, layers: int, generator: torch.Generator
) -> LanguageModel:
    """A Llama of this size, drawn at random but for its embeddings: the teacher's, as near as so few numbers come.

    E ≈ U_d S_d of the teacher's embeddings, [V, d], the projection that loses least of them (Eckart & Young 1936);
    where it is wider than the teacher, zeros follow.

    Args:
        teacher: whose tokenizer it has.
        width: of its hidden states.
        layers: how many.
        generator: draws the weights.
    """
    embeddings = teacher.head.weight.detach().float()
    config = LlamaConfig(
        vocab_size=len(embeddings),
        hidden_size=width,
        intermediate_size=8 * round(FORWARD * width / 8),
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // WIDTH_OF_HEAD),
        max_position_embeddings=teacher.context or 2048,
        tie_word_embeddings=True,
        bos_token_id=teacher.tokenizer.bos_token_id,
        eos_token_id=teacher.eos_ids,
        pad_token_id=teacher.pad_id,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:  # norms begin at 1
                std = parameter.shape[1] ** -0.5
                parameter.copy_(std * torch.randn(parameter.shape, generator=generator))
        left, sizes, _ = torch.linalg.svd(embeddings, full_matrices=False)
        table = model.get_input_embeddings()
        assert isinstance(table, nn.Embedding)
        known = min(width, embeddings.shape[1])
        table.weight.zero_()
        table.weight[:, :known] = left[:, :known] * sizes[:known]
        table.weight[:, known:].normal_(std=0.02, generator=generator)
    name = f"student of {teacher.name}, {width} × {layers}"
    return LanguageModel(name, model.eval(), teacher.tokenizer, unpads=teacher.unpads)
