"""Language models of other sizes: a ladder without a corpus, each rung taught by the embedded model.

A student reads texts that its teacher wrote and learns the teacher's whole distribution at every token, KL(teacher‖
student): far more than the one token that was drawn tells it. What it is in the end is said in nats from the teacher.
"""

from pathlib import Path

import torch
from torch import Tensor

from kleash.functional.divergences import reverse_kl
from kleash.lab.arms.settings import FaultSettings, StudentSettings
from kleash.lab.study.work import Desk, Result, clear
from kleash.models.hub import load_language_model, save_language_model
from kleash.models.policy import LanguageModel
from kleash.models.student import new_student
from kleash.rollout.config import RolloutConfig
from kleash.rollout.rollout import Rollout
from kleash.rollout.sampler import sample
from kleash.rollout.seeds import seeded
from kleash.train.data import load_prompts

BATCH = 32
"""Texts to a step."""
LEARNING_RATE = 2e-3
WARM_UP = 0.1
"""Of the steps, over which the rate rises; then it falls to 0."""
HELD_OUT = 64
"""Texts that the student is measured on."""
CARD = "# A student\n\nMade by kleash lab; it writes as its teacher writes, and is of no use beside that.\n"


def make_student(settings: StudentSettings, directory: Path, desk: Desk) -> Result:
    """Teaches one student, and measures how far it stays from its teacher."""
    torch.set_num_threads(1)
    clear(directory)
    teacher = load_language_model(settings.teacher)
    generator = seeded(settings.seed, "student")
    student = new_student(teacher, settings.width, settings.layers, generator)
    texts = written(teacher, settings, generator)
    learnt = torch.arange(HELD_OUT, len(texts.mask))
    optimizer = torch.optim.AdamW(student.model.parameters(), lr=LEARNING_RATE, fused=True)
    for step in range(1, settings.steps + 1):
        rows = learnt[torch.randint(len(learnt), (BATCH,), generator=generator)]
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * warm_up(step / settings.steps)
        loss = distance(teacher, student, texts, rows)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.model.parameters(), 1.0)
        optimizer.step()
        desk.tell(step, settings.steps, f"KL {loss.item():.2f} nats/token")
    with torch.no_grad():
        left = float(distance(teacher, student, texts, torch.arange(HELD_OUT)))
    save_language_model(student, directory / "model", CARD)
    return {
        "parameters": sum(p.numel() for p in student.model.parameters()),
        "kl_teacher_student_per_token": left,
    }


def written(
    teacher: LanguageModel,
    settings: StudentSettings | FaultSettings,
    generator: torch.Generator,
) -> Rollout:
    """Texts of the teacher, to its prompts in turn."""
    prompts = load_prompts(settings.prompts)
    count = settings.texts + HELD_OUT
    config = RolloutConfig(num_prompts=count, group_size=1, max_new_tokens=settings.max_new_tokens)
    asked = [prompts[i % len(prompts)] for i in range(count)]
    return sample(teacher, asked, config, generator)


def distance(
    teacher: LanguageModel, student: LanguageModel, texts: Rollout, rows: Tensor
) -> Tensor:
    """KL(teacher‖student) per token at the states of some texts, nats, with the student's gradient."""
    part = texts.rows(rows)
    given = part.prompt_ids, part.prompt_mask, part.response_ids, part.mask
    with torch.no_grad():
        theirs = torch.log_softmax(teacher.head(teacher.hidden(*given)[part.mask]), -1)
    own = torch.log_softmax(student.head(student.hidden(*given)[part.mask]), -1)
    return reverse_kl(theirs, own).mean()


def warm_up(done: float) -> float:
    """Of the highest rate: up, then down to 0."""
    return min(done / WARM_UP, (1 - done) / (1 - WARM_UP))
