"""Runs that several processes make together, each a fork of one that has imported everything.

    python -m tests.train.ranks < JOBS

JOBS is a JSON list, of which each is `{"settings", "run", "size"}`, and where it is to be so: `"resume": true`;
`"kill": [rank, step]`, by which that process ends by SIGKILL as it begins that update of its life; `"fail"`, the same
by an error; `"nudge"`, one of its weights is moved there, which none of the others knows; `"weigh"`, it says there how
many numbers it has of what. What is printed is, for each
job, the processes' exit codes and the last that each wrote.
"""

import json
import os
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import kleash.train.loop as loop_module
from kleash.errors import KleashError, ResourceError
from kleash.models.sharded import part
from kleash.train.config import RunConfig
from kleash.train.learner import Learner
from kleash.train.run import train


def uneven(prompts: list[str], responses: list[str]) -> list[float]:
    """A reward by which responses are seldom alike.

    Adam makes whole steps of a gradient that is rounding alone, which is what a minibatch of equal rewards has: then
    the last digits of two runs are soon the first.
    """
    return [sum((ord(c) % 11) / (2 + i) for i, c in enumerate(text)) / 4 for text in responses]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def at_update(step: int, act: Callable[[Learner], None]) -> None:
    """Has this process do something as it begins the update of a step."""
    real, calls = loop_module.propose_update, [0]

    def call(learner: Learner, *arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == step:
            act(learner)
        return real(learner, *arguments)

    loop_module.propose_update = call


def kill(_: Learner) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail(_: Learner) -> None:
    raise ResourceError("the device is on fire")


@torch.no_grad()
def nudge(learner: Learner) -> None:
    learner.trained[0].view(-1)[0] += 1e-6


def weigh(learner: Learner) -> None:
    moments = [x for each in learner.optimizer.state.values() for x in each.values() if x.ndim]
    spare = learner.spare
    assert spare is not None
    held = {
        "weights": [part(p) for p in learner.policy.own_weights.values()],
        "moments": moments,
        "snapshot": spare.parameters,
        "reference": [part(p) for p in learner.reference.own_weights.values()],
    }
    counts = {name: sum(x.numel() for x in each) for name, each in held.items()}

    def say(*_: Any) -> None:
        """Gradients are there as a step is made of them, and no longer."""
        counts["gradients"] = sum(p.grad.numel() for p in learner.trained if p.grad is not None)
        sys.stderr.write(json.dumps(counts) + "\n")
        hook.remove()

    hook = learner.optimizer.register_step_pre_hook(say)


ACTS = {"kill": kill, "fail": fail, "nudge": nudge, "weigh": weigh}


def live(job: dict[str, Any], rank: int) -> int:
    """One process's whole life; its exit code."""
    for name, act in ACTS.items():
        if name in job and job[name][0] == rank:
            at_update(job[name][1], act)
    try:
        config = RunConfig.model_validate(job["settings"])
        run, resume = Path(job["run"]), job.get("resume", False)
        skip = not job.get("self_test", False)
        for _ in train(config, run, skip_self_test=skip, resume=resume):
            pass
    except KleashError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


def fork(job: dict[str, Any], rank: int, port: int, log: int) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.dup2(log, 1)
        os.dup2(log, 2)
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": job["size"]}
        os.environ.update(place, **{name: str(number) for name, number in numbers.items()})
        os.environ.update(job.get("environment", {}))
        code = live(job, rank)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def launch(job: dict[str, Any]) -> dict[str, Any]:
    """Lets the processes of a job live, and says how each ended."""
    port = free_port()
    logs = [tempfile.TemporaryFile() for _ in range(job["size"])]  # noqa: SIM115 - closed below
    children = [fork(job, rank, port, log.fileno()) for rank, log in enumerate(logs)]
    statuses = [os.waitpid(child, 0)[1] for child in children]
    said: list[str] = []
    for log in logs:
        log.seek(0)
        said.append(log.read().decode()[-1500:])
        log.close()
    return {"codes": [os.waitstatus_to_exitcode(status) for status in statuses], "said": said}


def main() -> None:
    torch.set_num_threads(1)
    json.dump([launch(job) for job in json.load(sys.stdin)], sys.stdout)


if __name__ == "__main__":
    main()
