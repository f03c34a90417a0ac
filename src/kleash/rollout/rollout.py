"""What sampling leaves behind: the tokens, and what was recorded as they were drawn."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """B responses to P prompts, G each; prompts padded on the left, responses on the right."""

    prompts: tuple[str, ...]
    """B texts: each prompt repeated for its group."""
    responses: tuple[str, ...]
    """B texts, without special tokens."""
    prompt_index: Tensor
    """[B], which prompt a response answers: the clusters of every interval."""
    prompt_ids: Tensor
    """[B, P]."""
    prompt_mask: Tensor
    """[B, P] bool, True at real tokens."""
    response_ids: Tensor
    """[B, T]; the end-of-sequence token belongs to the response."""
    mask: Tensor
    """[B, T] bool, True at the response's own tokens."""
    sampled_logprobs: Tensor
    """[B, T], log π(y_t|h_t) as the sampler drew it, at its temperature; 0 where masked."""
    finished: Tensor
    """[B] bool: the response ended itself."""

    def rows(self, index: Tensor) -> "Rollout":
        """Some of the responses, padding that none of them needs cut off."""
        mask, prompt_mask = self.mask[index], self.prompt_mask[index]
        length = max(1, int(mask.sum(-1).max()))
        start = self.prompt_mask.shape[1] - max(1, int(prompt_mask.sum(-1).max()))
        chosen: list[int] = index.tolist()
        return Rollout(
            prompts=tuple(self.prompts[i] for i in chosen),
            responses=tuple(self.responses[i] for i in chosen),
            prompt_index=self.prompt_index[index],
            prompt_ids=self.prompt_ids[index, start:],
            prompt_mask=prompt_mask[:, start:],
            response_ids=self.response_ids[index, :length],
            mask=mask[:, :length],
            sampled_logprobs=self.sampled_logprobs[index, :length],
            finished=self.finished[index],
        )

    def responses_in_tokens(self) -> list[list[int]]:
        """The token ids of each response, its end-of-sequence token included."""
        pairs = zip(self.response_ids, self.mask, strict=True)
        return [row[keep].tolist() for row, keep in pairs]

    def sha256(self) -> str:
        """A commitment to the sampled tokens that doesn't store them."""
        digest = hashlib.sha256()
        for tensor in (self.prompt_ids, self.prompt_mask, self.response_ids, self.mask):
            digest.update(tensor.to(torch.int64).cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()
