"""What studies there are; to look is to import none of them, nor torch.

A study is a package of `kleash.lab.studies` whose module `study` has

    class Config(BaseModel)                   what it is made from; its defaults are the whole study
    QUICK: dict[str, Any]                     what a few minutes on two cores take instead, as TOML would say it
    def cost(config) -> float                 seconds of one core, about, with embedded models
    def run(config, work) -> Findings
"""

from typing import NamedTuple


class Study(NamedTuple):
    """One study."""

    name: str
    title: str
    question: str

    @property
    def module(self) -> str:
        """Where it is.

        Examples:
            >>> Study("beta-sweep", "", "").module
            'kleash.lab.studies.beta_sweep.study'
        """
        return f"kleash.lab.studies.{self.name.replace('-', '_')}.study"


_ALL = (
    Study(
        "overopt",
        "Over-optimisation",
        "Does a policy that is trained on a proxy get worse by the gold reward, and is a KL penalty more than "
        "stopping early?",
    ),
    Study(
        "beta-sweep",
        "What β buys",
        "How much reward does each nat of KL buy, and which β or which target should one choose?",
    ),
    Study(
        "ensembles",
        "Reward-model ensembles",
        "Do several reward models keep a policy from over-optimising for longer than one does?",
    ),
    Study(
        "goodhart",
        "Light and heavy tails",
        "When does a KL penalty protect against a proxy's errors, and when does none, however large?",
    ),
    Study(
        "hacking",
        "Reward hacking and its alarms",
        "Which hacks does a KL penalty prevent, slow or miss, and which alarms notice them, at which rate of false "
        "ones?",
    ),
    Study(
        "misaligned-base",
        "Faults of the base model",
        "Does a policy that is held close to its reference lose the reference's faults?",
    ),
    Study(
        "retention",
        "What is not forgotten",
        "Does a KL penalty on the task keep what the base model knew beside it?",
    ),
    Study(
        "collapse",
        "Collapse",
        "What becomes of the variety of responses as β goes to 0?",
    ),
    Study(
        "scaling",
        "Size",
        "How do drift, gold loss and the β for a target change with the size of policy, reward model and data?",
    ),
)
STUDIES: dict[str, Study] = {study.name: study for study in _ALL}
"""By name, in the order of the book."""
