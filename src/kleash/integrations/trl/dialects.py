"""What each of TRL's configurations of reinforcement learning says, in kleash's words: TRL 0.11, and 0.12 to 1.16."""

from kleash.integrations.trl.migration import Carried, Dialect, flag, number, text, whole
from kleash.integrations.trl.translation import (
    NO_PROMPTS,
    POSITIVE,
    grpo,
    ppo_new,
    ppo_old,
    rloo,
    rloo_old,
)

_OWN_RUN = "of how TRL logs, saves and places a run: kleash has its own [train]"
_RUNNING = dict.fromkeys(
    (
        *("output_dir", "run_name", "report_to", "logging_steps", "logging_strategy", "log_with"),
        *("logging_dir", "save_steps", "save_strategy", "save_total_limit", "eval_strategy"),
        *("eval_steps", "push_to_hub", "hub_model_id", "bf16", "fp16", "tf32", "exp_name"),
        *("task_name", "tracker_project_name", "tracker_kwargs", "accelerator_kwargs"),
        *("project_kwargs", "deepspeed", "fsdp", "ddp_find_unused_parameters", "use_cpu"),
        *("gradient_checkpointing", "gradient_checkpointing_kwargs", "dataloader_num_workers"),
        *("dataset_num_proc", "remove_unused_columns", "log_completions", "use_vllm"),
        *("vllm_mode", "vllm_gpu_memory_utilization", "num_sample_generations", "world_size"),
        *("local_rollout_forward_batch_size", "optimize_cuda_cache", "optimize_device_cache"),
        *("ds3_gather_for_generation", "is_peft_model", "is_encoder_decoder", "disable_tqdm"),
    ),
    _OWN_RUN,
)
_UNIT = number(0.0, 1.0, closed="low high")
_SIMPLE = {
    "learning_rate": Carried("optimizer.learning_rate", POSITIVE),
    "adam_beta1": Carried("optimizer.beta1", number(0.0, 1.0, closed="low")),
    "adam_beta2": Carried("optimizer.beta2", number(0.0, 1.0, closed="low")),
    "weight_decay": Carried("optimizer.weight_decay", number(0.0, closed="low")),
    "max_grad_norm": Carried("optimizer.max_grad_norm", POSITIVE),
    "warmup_steps": Carried("optimizer.warmup_steps", whole(0)),
    "seed": Carried("train.seed", whole(0, 2**53)),
    "temperature": Carried("rollout.temperature", POSITIVE),
}
_CRITIC = {
    "cliprange": Carried("algorithm.clip_eps", number(0.0, 1.0)),
    "cliprange_value": Carried("algorithm.value_clip_eps", POSITIVE),
    "gamma": Carried("algorithm.gamma", number(0.0, 1.0, closed="high")),
    "lam": Carried("algorithm.gae_lambda", _UNIT),
    "vf_coef": Carried("algorithm.value_coef", number(0.0, closed="low")),
    "whiten_rewards": Carried("algorithm.whiten_rewards", flag),
}
_CRITIC_DEFAULTS = {
    "cliprange": 0.2,
    "cliprange_value": 0.2,
    "gamma": 1.0,
    "lam": 0.95,
    "vf_coef": 0.1,
    "whiten_rewards": False,
}
_PATHS = {
    "sft_model_path": Carried("model.policy", text),
    "reward_model_path": Carried("reward.model", text),
}
_SAMPLING = dict.fromkeys(
    ("top_p", "top_k", "min_p", "repetition_penalty", "generation_kwargs"),
    "kleash samples from the policy at its temperature and nothing else, so that its KL is the policy's",
)


def _rules(*more: dict[str, Carried]) -> dict[str, Carried]:
    return {key: rule for rules in (_SIMPLE, *more) for key, rule in rules.items()}


_MODEL_NAMES = {
    "model_name": Carried("model.policy", text),
    "reward_model": Carried("reward.model", text),
}
_LENGTH = {"max_completion_length": Carried("rollout.max_new_tokens", whole(1))}
_DATASET = {
    "query_dataset": NO_PROMPTS,
    "dataset_name": NO_PROMPTS,
    "max_prompt_length": "kleash refuses a prompt that does not fit, and cuts none",
}
_ADAM = {"adam_beta1": 0.9, "adam_beta2": 0.999, "weight_decay": 0.0}
_TRL1 = _ADAM | {
    "learning_rate": 1e-6,
    "max_grad_norm": 1.0,
    "temperature": 1.0,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "num_iterations": 1,
    "epsilon": 0.2,
}
_ON_POLICY = _ADAM | {
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "num_mini_batches": 1,
    "num_ppo_epochs": 4,
    "response_length": 53,
    "temperature": 0.7,
    "kl_coef": 0.05,
    "cliprange": 0.2,
    "max_grad_norm": 1.0,
}
_RESPONSE = {
    "response_length": Carried("rollout.max_new_tokens", whole(1)),
    "missing_eos_penalty": Carried("reward.missing_eos_penalty", number(0.0, closed="low")),
}
_STOPS = dict.fromkeys(
    ("stop_token", "stop_token_id"), "a response ends with the tokenizer's end-of-sequence token"
)

DIALECTS: dict[str, Dialect] = {
    each.name: each
    for each in (
        Dialect(
            name="ppo-0.11",
            title="TRL's PPOConfig up to 0.11",
            carried=_rules(
                _CRITIC,
                _MODEL_NAMES,
                {"ppo_epochs": Carried("algorithm.num_epochs", whole(1))},
            ),
            defaults=_CRITIC_DEFAULTS
            | _ADAM
            | {
                **{"learning_rate": 1.41e-5, "ppo_epochs": 4, "batch_size": 128},
                **{"mini_batch_size": 128, "gradient_accumulation_steps": 1, "steps": 20000},
                **{"adap_kl_ctrl": True, "init_kl_coef": 0.2, "target": 6, "horizon": 10000},
                **{"kl_penalty": "kl", "early_stopping": False, "seed": 0},
            },
            left=_RUNNING
            | _DATASET
            | _SAMPLING
            | {
                "ratio_threshold": "guard.max_log_ratio refuses an update that moved a token too far, whole",
                "forward_batch_size": "TRL had given it up for mini_batch_size",
                "backward_batch_size": "it is mini_batch_size · gradient_accumulation_steps",
                "global_batch_size": "it follows from the others",
                "use_score_scaling": "kleash takes the reward's own units",
                "use_score_norm": "kleash takes the reward's own units",
                "score_clip": "reward.clip = [-c, c] is what kleash has for it, in the reward's own units",
                "max_new_tokens": "say it as rollout.max_new_tokens: TRL took it from generation_kwargs",
                "remove_padding": _OWN_RUN,
                "compare_steps": _OWN_RUN,
            },
            derive=ppo_old,
        ),
        Dialect(
            name="ppo-0.12",
            title="TRL's PPOConfig of 0.12 and after",
            carried=_rules(_CRITIC, _PATHS, _RESPONSE),
            defaults=_CRITIC_DEFAULTS | _ON_POLICY | {"kl_estimator": "k1"},
            left=_RUNNING
            | _DATASET
            | _STOPS
            | _SAMPLING
            | {"num_train_epochs": "train.steps counts rollouts"},
            derive=ppo_new,
        ),
        Dialect(
            name="rloo-0.12",
            title="TRL's RLOOConfig up to 0.22",
            carried=_rules(_PATHS, _RESPONSE),
            defaults=_ON_POLICY | {"rloo_k": 2, "normalize_advantage": False},
            left=_RUNNING
            | _DATASET
            | _STOPS
            | _SAMPLING
            | {"num_train_epochs": "train.steps counts rollouts"},
            derive=rloo_old,
        ),
        Dialect(
            name="grpo",
            title="TRL's GRPOConfig",
            carried=_rules(_LENGTH),
            defaults=_TRL1
            | {
                **{"num_generations": 8, "max_completion_length": 512, "beta": 0.0},
                **{"loss_type": "dapo", "importance_sampling_level": "token"},
                "use_bias_correction_kl": False,
                "scale_rewards": "group",
            },
            left=_RUNNING
            | _DATASET
            | _SAMPLING
            | {
                "num_train_epochs": "train.steps counts rollouts",
                "reward_weights": "kleash has one reward: add them up in it",
                "mask_truncated_completions": "reward.missing_eos_penalty is what kleash has for them",
                "sync_ref_model": "model.refresh_every is kleash's",
                "ref_model_mixup_alpha": "model.refresh_share is kleash's",
                "ref_model_sync_steps": "model.refresh_every is kleash's",
                "delta": "kleash has no second clip",
                "top_entropy_quantile": "kleash learns from every token",
                "disable_dropout": "kleash never has any",
            },
            derive=grpo,
        ),
        Dialect(
            name="rloo",
            title="TRL's RLOOConfig of 0.23 and after",
            carried=_rules(_LENGTH),
            defaults=_TRL1
            | {
                **{"num_generations": 2, "max_completion_length": 512, "beta": 0.05},
                "normalize_advantages": False,
            },
            left=_RUNNING
            | _DATASET
            | _SAMPLING
            | {
                "num_train_epochs": "train.steps counts rollouts",
                "reward_weights": "kleash has one reward: add them up in it",
                "mask_truncated_completions": "reward.missing_eos_penalty is what kleash has for them",
                "disable_dropout": "kleash never has any",
            },
            derive=rloo,
        ),
    )
}
