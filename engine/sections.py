"""The sections of a run's config: fields, types, bounds, defaults and what each means. Reading and writing: engine/config.py."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from engine import methods
from engine import objective as objectives


class Section(BaseModel):
    """Base of every section: immutable, strict about types; unknown keys and numbers that are not finite are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=(), allow_inf_nan=False)


class DataConfig(Section):
    train: str = Field(
        description="a file (.jsonl, .json, .csv, .parquet, also .gz), part-*.jsonl, a folder, or owner/name:config@revision"
        "#split of the hub; [:1000] or [10%:90%] behind it: these rows only"
    )
    valid: str | None = Field(
        None,
        description="held-out data, named as train; null: the validation part of the folder or data set, else a seeded split of "
        "up to run.eval_rows rows",
    )
    format: str = Field("auto", description="row format; auto detects it from the rows")
    columns: dict[str, str] = Field({}, description="our field name: the name in your file")
    system: str | None = Field(None, description="system message put before every prompt that has none")
    targets: Literal["assistant", "last", "all"] = Field(
        "assistant", description="sft only: learn every assistant turn, the last one, or all text, prompts included"
    )
    decisive_weight: float = Field(
        3.0, ge=1, description="sft only: weight of the tokens of steps that sparse_indicators mark with 1; others weigh 1"
    )


class ChatConfig(Section):
    """How prompts and replies become text, where that is not simply as the model has it."""

    template: str | None = Field(
        None, description="a Jinja file (.jinja), or the name of one of the model's chat templates; null: the model's default"
    )
    variables: dict[str, Any] = Field(
        {}, description="what the template may ask for, such as {enable_thinking: false}; without an entry as mlx_lm has it"
    )
    stop: list[str] = Field([], description="tokens that end a reply beside the model's own, each one token: <|im_end|>")
    add_tokens: list[str] = Field(
        [],
        description='special tokens the model lacks, such as ["<plan>", "</plan>"]: each becomes one id, its embedding and head '
        "rows start as the mean of its pieces' and are trained beside the adapter; taken home by export --to fused",
    )


class QuantizeConfig(Section):
    """Quantise the model's weights as it is loaded (its folder stays as it is): QLoRA on any model."""

    bits: Literal[2, 3, 4, 5, 6, 8] | None = Field(None, description="bits of a weight; null: the model stays as it is")
    group_size: Literal[32, 64, 128] = Field(64, description="weights that share a scale")


class AdapterConfig(Section):
    type: Literal["lora", "dora", "full"] = Field("lora", description="what is trained: low-rank adapters or every weight")
    rank: int = Field(16, ge=1, description="columns of the low-rank factors")
    scale: float = Field(20.0, gt=0, description="factor of the adapter's output (mlx_lm's scale; alpha / rank elsewhere)")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the adapter's input; must be 0 for reward methods")
    layers: int = Field(-1, ge=-1, description="how many layers from the last get adapters, 1 or more; -1: all")
    keys: list[str] | None = Field(None, description="module paths inside a layer, such as self_attn.q_proj; null: all linear")
    start_from: str | None = Field(
        None, description="an adapter (its folder or .safetensors file) that training goes on from; it is then the reference, too"
    )


class SamplingConfig(Section):
    prompts_per_step: int = Field(
        4, ge=1, description="prompts of one step (supervised: rows of one update); by default at least one for each mini-batch"
    )
    group_size: int = Field(8, ge=1, description="completions sampled for each prompt")
    max_prompt_tokens: int = Field(512, ge=1, description="longer prompts are left out and counted")
    max_completion_tokens: int = Field(
        512, ge=1, description="completions are cut here; sft: limit of a row from its first target on, longer rows are left out"
    )
    temperature: float = Field(1.0, gt=0, description="of the sampling distribution, which is also the one that is scored")
    share_prompts: Literal["auto"] | bool = Field(
        "auto",
        description="completions of one prompt hold its keys and values together while they decode; auto: on a CPU, and on a GPU "
        "where it spares a layer 16 MiB",
    )


class ObjectiveConfig(Section):
    """Overrides of the method's row; an entry that is left out, or null, keeps the row's value."""

    advantage: objectives.Advantage | None = Field(
        None, description="group: (r - mean) / std; none: r - mean; batch: std of the batch; rloo: others' mean; global: whitened"
    )
    ratio: objectives.Ratio | None = Field(None, description="the importance ratio is a token's or the whole completion's")
    surrogate: objectives.Surrogate | None = Field(None, description="clip: PPO's; cispo: capped weight on log pi")
    aggregate: objectives.Aggregate | None = Field(None, description="how token losses become one number")
    epsilon_low: float | None = Field(None, gt=0, description="ratios clip below 1 - this; left out or null: the row's value")
    epsilon_high: float | None = Field(None, gt=0, description="ratios clip above 1 + this; left out or null: the row's value")
    delta: float | None = Field(None, gt=1, description="bound of the ratio where the advantage is negative (two-sided clip)")
    beta: float | None = Field(None, ge=0, description="weight of the KL to the reference; 0: no reference")
    kl: objectives.Kl | None = Field(None, description="k1 for the reward; k2, k3, k3_ratio (times the ratio) for the loss")
    kl_in: objectives.KlIn | None = Field(None, description="where the KL goes: loss or reward")
    ref_sync_every: int | None = Field(None, ge=0, description="steps between two moves of the reference to the policy; 0: never")
    ref_sync_mix: float | None = Field(None, gt=0, le=1, description="reference = this x policy + the rest x reference")
    minibatches: int | None = Field(None, ge=1, description="updates that one pass over a step's rollouts is split into")
    updates_per_rollout: int | None = Field(None, ge=1, description="passes over the same rollouts")
    old: objectives.Old | None = Field(None, description="whose log-probabilities the ratio is taken against")
    tis: objectives.Tis | None = Field(None, description="importance weight trainer / sampler: capped (truncate), zeroed (mask)")
    tis_cap: float | None = Field(None, gt=0, description="upper bound of that weight")
    tis_floor: float | None = Field(None, gt=0, description="lower bound, of the mask modes")
    truncated: objectives.Truncated | None = Field(
        None, description="completions cut at the limit: keep their reward, make it zero, or mask their loss (they count in N)"
    )
    soft_overlong: float | None = Field(
        None, ge=0, lt=1, description="last share of max_completion_tokens over which the reward falls by up to 1; 0: off"
    )
    entropy_bonus: float | None = Field(None, ge=0, description="weight of the mean token entropy in the objective; 0: off")
    entropy_quantile: float | None = Field(
        None, gt=0, le=1, description="share of tokens, those of highest entropy, that the policy term trains; 1: all"
    )
    dynamic_sampling: int | None = Field(
        None, ge=0, description="extra rollouts a step may take to replace groups whose rewards are all equal; 0: off"
    )


class RewardConfig(Section):
    name: str = Field(description="a built-in reward, or a function in `file`")
    weight: float = Field(1.0, description="factor in the weighted sum")
    file: str | None = Field(None, description="Python file that defines the function")
    timeout: float = Field(60.0, gt=0, allow_inf_nan=True, description="seconds of one call over a step's completions, or .inf")
    options: dict[str, Any] = Field(
        {}, description="of built-in rewards, such as regex: {pattern: ...}; `droid-tune rewards` lists them"
    )
    steps: str | None = Field(
        None,
        min_length=1,
        description="the function gives a list for each completion, one value per reasoning step; this text parts the steps",
    )


Decay = Annotated[float, Field(ge=0, lt=1)]


class OptimConfig(Section):
    name: Literal["adamw", "adam", "adafactor", "muon", "lion", "sgd"] = "adamw"
    learning_rate: float = Field(
        1.0e-5, gt=0, description="of an AdamW step; muon's steps are scaled to the same size, lion wants 3 to 10 times less"
    )
    schedule: Literal["constant", "linear", "cosine"] = Field("cosine", description="over all updates, after the warm-up")
    warmup: float = Field(0.03, ge=0, lt=1, description="share of all updates with a linearly rising rate")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients with a larger global norm are scaled down to it")
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[Decay, Decay] = Field(
        (0.9, 0.999), strict=False, description="decay of Adam's two moments, each in [0, 1); lion's paper has 0.9 and 0.99"
    )
    eps: float = Field(1.0e-8, gt=0, description="added to the root of Adam's second moment")
    max_nonfinite: int = Field(3, ge=1, description="updates in a row with a loss or gradient that is not finite end the run")
    micro_batch_rows: int | None = Field(
        None,
        ge=1,
        description="rows of one forward and backward pass; null: as many as fit and are of use (about 8,192 tokens)",
    )
    grad_checkpoint: Literal["auto"] | bool = Field(
        "auto",
        description="the backward pass computes each layer again: less memory, about a third more time; auto: only where the "
        "update would not fit otherwise",
    )


class RunSection(Section):
    steps: int = Field(200, ge=1)
    seed: int = Field(0, ge=0)
    eval_every: int = Field(25, ge=1, description="steps between evaluations on held-out prompts")
    eval_rows: int = Field(64, ge=1, description="held-out rows, at most")
    checkpoint_every: int = Field(25, ge=1, description="steps between checkpoints; one is also due every checkpoint_minutes")
    checkpoint_minutes: float = Field(10.0, gt=0)
    memory_limit_gb: float | None = Field(
        None,
        gt=0,
        description="gigabytes (10^9 bytes) that the run's arrays may use, and with them the freed buffers that mlx keeps for "
        "reuse: these get what is left beside the planned peak, at least 32 MiB; null: what this machine lets a program use",
    )
    keep_checkpoints: int = Field(3, ge=1, description="older checkpoints are deleted")
    name: str | None = Field(None, description="the run's name; null: made from method and model")


class RunConfig(Section):
    model: str = Field(description="a folder, a .gguf file, owner/name[@revision] (on this machine, else of the hub), or demo")
    method: str
    data: DataConfig
    chat: ChatConfig = ChatConfig()
    quantize: QuantizeConfig = QuantizeConfig()
    adapter: AdapterConfig = AdapterConfig()
    sampling: SamplingConfig = SamplingConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    rewards: list[RewardConfig] = []
    optim: OptimConfig = OptimConfig()
    run: RunSection = RunSection()

    def resolved_objective(self) -> methods.Objective:
        """The method's row with this config's overrides; InputError for an illegal combination."""
        return methods.resolve_objective(self.method, self.objective.model_dump(exclude_none=True))
