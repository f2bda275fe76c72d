"""The sections of the federation file, each a frozen dataclass that checks itself when it is made.

What holds between sections is checked by `credit_common.contract.Contract`; the columns of a shard
are in `credit_common.fields`.
"""

import re
from dataclasses import dataclass, field
from typing import Literal

from credit_common.checked import require
from credit_common.errors import ContractError

NAME = r"[a-z0-9][a-z0-9-]{0,62}"
"""Names of federations, holders and size classes: they stand in certificates and file names."""
NAME_BOUND = "1 to 63 lower-case letters, digits and hyphens"

GroupName = Literal["lora", "head", "wide"]
"""A group of weights; the names of a group's tensors begin with it."""

Upload = Literal["float32", "bfloat16", "int8"]
"""How a trained adapter leaves a holder; see `credit_common.upload`."""

Aggregation = Literal["mean", "trimmed_mean", "median", "multi_krum"]
"""How the coordinator makes one change of a round's; see `credit_server.robust`."""

LARGEST_DELTA = 1e-3
"""Beyond, δ itself would be a chance that something happens to a user."""

DROPOUT_REASON = (
    "dropout is refused: it makes frozen layers random, so that they cannot be computed once and "
    "kept, and under per-example clipping its noise costs accuracy without protecting anyone; "
    "use weight_decay"
)


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is predicted.

    Attributes:
        kind: binary (1 = default, the event), multiclass, or regression.
        label: Column that holds the outcome.
        positive: Binary: codes that mean the event. `negative`: codes that mean its absence.
        classes: Multi-class: all codes, in the order of the model's outputs.
        range: Regression: smallest and largest plausible target; the model is trained on
            (target - low) / (high - low).
        base_rate: Binary: public prior of the event, where the first model starts. Not a figure of
            any holder's data.
    """

    kind: Literal["binary", "multiclass", "regression"] = "binary"
    label: str
    positive: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    range: tuple[float, float] | None = None
    base_rate: float = 0.5

    def __post_init__(self) -> None:
        if self.kind == "binary":
            both = bool(self.positive) and bool(self.negative)
            require(both, "task.positive", self.positive, "given, and task.negative too")
            apart = not set(self.positive) & set(self.negative)
            require(apart, "task.negative", self.negative, "without codes of task.positive")
            require(0 < self.base_rate < 1, "task.base_rate", self.base_rate, "inside (0, 1)")
        elif self.kind == "multiclass":
            unique = len(set(self.classes)) == len(self.classes) >= 2
            require(unique, "task.classes", self.classes, "at least two different codes")
        else:
            ok = self.range is not None and self.range[0] < self.range[1]
            require(ok, "task.range", self.range, "[low, high] with low < high")

    @property
    def outputs(self) -> int:
        """Number of values that the model returns for one record."""
        return len(self.classes) if self.kind == "multiclass" else 1


@dataclass(frozen=True, kw_only=True)
class RecordRule:
    """How rows become one record per user, the unit of privacy.

    Attributes:
        user: The identifier column that names the user.
        several_rows: Which of a user's rows gives the record: the last or first one (by `time`, or
            in the file's order where there is none), or the user is rejected. Event lists of all
            rows are joined.
        time: The time field that orders a user's rows; empty for the file's order.
    """

    user: str
    several_rows: Literal["last", "first", "reject"] = "last"
    time: str = ""


@dataclass(frozen=True, kw_only=True)
class Split:
    """Train and hold-out users, by a keyed hash of the user id.

    `salt` and `holdout` outlive contracts: a user who once was a hold-out user must stay one, or
    both accounts of the ledger add up.
    """

    salt: str
    holdout: float = 0.2

    def __post_init__(self) -> None:
        require(len(self.salt) >= 8, "split.salt", self.salt, "at least 8 characters")
        require(0 <= self.holdout <= 0.5, "split.holdout", self.holdout, "between 0 and 0.5")


@dataclass(frozen=True, kw_only=True)
class Model:
    """A frozen BERT with LoRA on its top layers, beside a wide part.

    Attributes:
        backbone: "minilm-l6" (the pinned default), a folder, or a hub id.
        backbone_sha256: Digest of model.safetensors; needed unless the default is used.
        tokens: Longest text in tokens; longer ones are cut.
        layers: Number k of top layers that carry LoRA.
        rank, alpha: LoRA's rank r and scale alpha (Hu et al. 2022): W + alpha / r * B A.
        targets: Attention projections that carry LoRA.
        factors: "fedavg" trains and averages A and B, "ffa" keeps A at its public initial value
            (Sun et al. 2024).
        train: Which groups of weights are trained; without "lora" and "head" there is no text.
        mean_weight: w of what the head reads of a text, the last layer's [CLS] + w times the mean
            of the tokens that go into that layer; 0 for [CLS] alone.
        text_scale: Public factor on what the head reads of the text. Under one clip norm it sets
            how much of a user's gradient belongs to the text side.
        head_bias: Whether the head has a constant of its own. Its gradient is a prediction's whole
            error, as much of the clip norm as the text takes, for what the wide part's constant
            and the public base rate say already. Classes and values have no base rate: without
            the wide part they need it.
        seed: Public seed of the initial weights.
    """

    backbone: str = "minilm-l6"
    backbone_sha256: str = ""
    tokens: int = 128
    layers: int = 1
    rank: int = 8
    alpha: float = 16.0
    targets: tuple[Literal["query", "value"], ...] = ("query", "value")
    factors: Literal["fedavg", "ffa"] = "fedavg"
    train: tuple[GroupName, ...] = ("lora", "head", "wide")
    mean_weight: float = 0.0
    text_scale: float = 1.0
    head_bias: bool = True
    dropout: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.dropout != 0:
            raise ContractError(f"model.dropout = {self.dropout!r}: {DROPOUT_REASON}")
        require(8 <= self.tokens <= 512, "model.tokens", self.tokens, "between 8 and 512")
        require(self.layers >= 1, "model.layers", self.layers, "at least 1")
        require(1 <= self.rank <= 64, "model.rank", self.rank, "between 1 and 64")
        ok = 0 <= self.mean_weight <= 100
        require(ok, "model.mean_weight", self.mean_weight, "between 0 and 100")
        require(self.text_scale > 0, "model.text_scale", self.text_scale, "positive")
        require(self.alpha > 0, "model.alpha", self.alpha, "positive")
        require(bool(self.targets), "model.targets", self.targets, "at least one projection")
        require(bool(self.train), "model.train", self.train, "at least one group")
        sha = self.backbone_sha256
        ok = re.fullmatch(r"[0-9a-f]{64}", sha) is not None or (
            sha == "" and self.backbone == "minilm-l6"
        )
        require(ok, "model.backbone_sha256", sha, "the SHA-256 of model.safetensors, in hex")
        lora_alone = "lora" in self.train and "head" not in self.train
        require(not lora_alone, "model.train", self.train, 'with "head" where it has "lora"')

    @property
    def reads_text(self) -> bool:
        """Whether the text side takes part at all."""
        return "head" in self.train


@dataclass(frozen=True, kw_only=True)
class LearningRates:
    """Step sizes by group of weights."""

    lora: float = 0.05
    head: float = 0.05
    wide: float = 0.5

    def __post_init__(self) -> None:
        for name in ("lora", "head", "wide"):
            value = getattr(self, name)
            ok = 0 < value <= 1000
            require(ok, f"training.learning_rate.{name}", value, "inside (0, 1000]")


@dataclass(frozen=True, kw_only=True)
class Training:
    """Rounds and local steps.

    Attributes:
        rounds: Number of federated rounds.
        steps: Local optimizer steps of each holder in one round.
        sampling_rate: Poisson probability q that a user takes part in one step.
        learning_rate: Step sizes by group of weights.
        optimizer: Local optimizer, made anew each round.
        momentum: For "sgd".
        weight_decay: L2 pull of the wide and head weights towards zero. It acts after the noise,
            so it costs no privacy.
        adversarial: Radius of the perturbed copy that each text is trained on as well (Miyato et
            al. 2017), in units of the mean norm of the text's own tokens; 0 makes no copy.
        average: Weight of the past in the exponential average of the global adapter, which is what
            is evaluated and released; 0 releases the last round's adapter.
        upload: How a holder sends what it trained: "float32" the adapter itself, "bfloat16" and
            "int8" its changes since the request, in about a half and three tenths of the bytes.
            They are rounded after the noise, so it costs no privacy.
        server_learning_rate, server_momentum: How the coordinator moves the global adapter by the
            round's mean change (FedAvgM, Hsu et al. 2019): velocity = momentum * velocity + change,
            adapter += rate * velocity. 1 and 0 make it the mean (FedAvg). It is post-processing, so
            it costs no privacy; it brings on weights that few holders have users for, and at small
            epsilon it brings on noise.
        aggregation: "mean" is FedAvg's, by public weight; the others bear with liars.
            "trimmed_mean" and "median" go coordinate by coordinate and count each holder once,
            "multi_krum" takes the mean by weight of the holders that lie closest together.
        byzantine: Most holders of a round that may lie; 0 for "mean", at least 1 for the others.
    """

    rounds: int
    steps: int
    sampling_rate: float
    learning_rate: LearningRates = field(default_factory=LearningRates)
    optimizer: Literal["sgd", "adam"] = "sgd"
    momentum: float = 0.0
    weight_decay: float = 0.0
    adversarial: float = 0.0
    average: float = 0.0
    upload: Upload = "float32"
    server_learning_rate: float = 1.0
    server_momentum: float = 0.0
    aggregation: Aggregation = "mean"
    byzantine: int = 0

    def __post_init__(self) -> None:
        require(1 <= self.rounds <= 10_000, "training.rounds", self.rounds, "between 1 and 10000")
        require(1 <= self.steps <= 10_000, "training.steps", self.steps, "between 1 and 10000")
        q = self.sampling_rate
        require(0 < q <= 1, "training.sampling_rate", q, "inside (0, 1]")
        require(0 <= self.momentum < 1, "training.momentum", self.momentum, "inside [0, 1)")
        ok = self.momentum == 0 or self.optimizer == "sgd"
        require(ok, "training.momentum", self.momentum, 'zero unless the optimizer is "sgd"')
        ok = 0 <= self.weight_decay <= 1
        require(ok, "training.weight_decay", self.weight_decay, "between 0 and 1")
        radius = self.adversarial
        require(0 <= radius <= 10, "training.adversarial", radius, "between 0 and 10")
        require(0 <= self.average < 1, "training.average", self.average, "inside [0, 1)")
        rate, momentum = self.server_learning_rate, self.server_momentum
        require(0 < rate <= 100, "training.server_learning_rate", rate, "inside (0, 100]")
        require(0 <= momentum < 1, "training.server_momentum", momentum, "inside [0, 1)")
        liars, mean = self.byzantine, self.aggregation == "mean"
        bound = "0 where aggregation is mean" if mean else f"at least 1 for {self.aggregation}"
        require((liars == 0) if mean else (liars >= 1), "training.byzantine", liars, bound)

    @property
    def least_answers(self) -> int:
        """Answers without which nothing can be said against `byzantine` liars.

        2 f + 1 where most of the values must be honest in each coordinate (Yin et al. 2018), and
        2 f + 3 for Krum (Blanchard et al. 2017).
        """
        if self.aggregation == "mean":
            return 1
        return 2 * self.byzantine + (3 if self.aggregation == "multi_krum" else 1)


@dataclass(frozen=True, kw_only=True)
class Privacy:
    """The privacy budget and the mechanism of a step.

    Attributes:
        epsilon, delta: Budget for each user of a holder, under add/remove of that user. Epsilon is
            absent (infinite) only for a federation without privacy, which client and server refuse
            unless they are told to allow it.
        clip_norm: L2 bound C of one user's gradient.
        noise_multiplier: Standard deviation of the noise on a step's sum, in units of C.
        size_classes: Public size class -> number of training users that it stands for. The class
            sets the denominator of a step and the weight of the average, never the exact count.
        tuning: On what data the settings of this contract were chosen, for the privacy report:
            trials on a holder's data that its ledger does not have would be spent unseen.
        group_clip: Group of weights -> L2 bound of a user's gradient in that group; the squares add
            up to at most clip_norm squared, and the noise is that of clip_norm. Absent for one
            bound on the whole gradient.
    """

    epsilon: float | None = None
    delta: float = 1e-5
    clip_norm: float = 1.0
    noise_multiplier: float = 0.0
    size_classes: tuple[tuple[str, int], ...] = (("standard", 1000),)
    tuning: str = ""
    group_clip: tuple[tuple[GroupName, float], ...] = ()

    def __post_init__(self) -> None:
        ok = self.epsilon is None or 0 < self.epsilon <= 50
        require(ok, "privacy.epsilon", self.epsilon, "inside (0, 50], or absent for no privacy")
        ok = 0 < self.delta <= LARGEST_DELTA
        require(ok, "privacy.delta", self.delta, f"inside (0, {LARGEST_DELTA:g}]")
        ok = 0 < self.clip_norm <= 1e6
        require(ok, "privacy.clip_norm", self.clip_norm, "inside (0, 1000000]")
        sigma = self.noise_multiplier
        if self.epsilon is None:
            require(sigma == 0, "privacy.noise_multiplier", sigma, "0 where epsilon is absent")
        else:
            require(0.2 <= sigma <= 1e3, "privacy.noise_multiplier", sigma, "between 0.2 and 1000")
        names = [name for name, _ in self.size_classes]
        unique = 1 <= len(set(names)) == len(names)
        require(unique, "privacy.size_classes", self.size_classes, "at least one, each once")
        for name, users in self.size_classes:
            ok = re.fullmatch(NAME, name) is not None
            require(ok, "privacy.size_classes", name, NAME_BOUND)
            require(users >= 1, f"privacy.size_classes.{name}", users, "at least 1 user")
        groups = [group for group, _ in self.group_clip]
        unique = len(set(groups)) == len(groups)
        require(unique, "privacy.group_clip", self.group_clip, "each group once")
        for group, bound in self.group_clip:
            require(bound > 0, f"privacy.group_clip.{group}", bound, "positive")

    @property
    def private(self) -> bool:
        """Whether there is a budget at all."""
        return self.epsilon is not None

    def class_users(self, size_class: str) -> int:
        """Number of users that a size class stands for."""
        classes = dict(self.size_classes)
        if size_class not in classes:
            known = ", ".join(classes)
            raise ContractError(f"size class {size_class!r} is not in the contract; it has {known}")
        return classes[size_class]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """DP histograms of the hold-out users' scores, on a fixed schedule.

    Attributes:
        every: Rounds between two evaluations; the last round is always evaluated.
        bins: Equal bins of the score over (0, 1).
        noise_multiplier: Standard deviation of the Gaussian noise on each cell's count (one user
            is in one cell, so the sensitivity is 1).
        groups: Names of protected fields by whose codes the last evaluation also counts outcomes
            and decisions (a user is in one more cell for each, see `credit_common.groups`).
    """

    every: int = 5
    bins: int = 50
    noise_multiplier: float = 0.0
    groups: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(self.every >= 1, "evaluation.every", self.every, "at least 1")
        require(2 <= self.bins <= 1000, "evaluation.bins", self.bins, "between 2 and 1000")
        sigma = self.noise_multiplier
        require(sigma >= 0, "evaluation.noise_multiplier", sigma, "at least 0")
        unique = len(set(self.groups)) == len(self.groups)
        require(unique, "evaluation.groups", self.groups, "each field once")

    def due(self, round_: int, rounds: int) -> bool:
        """Whether `round_` (from 1) of `rounds` is evaluated."""
        return round_ % self.every == 0 or round_ == rounds


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Counts of the training users by value, once before the first round, for federated edges.

    Attributes:
        noise_multiplier: Standard deviation of the Gaussian noise on each cell's count, in users.
            A user is in one cell of each of the F fields, so the sensitivity is sqrt(F).
    """

    noise_multiplier: float = 0.0

    def __post_init__(self) -> None:
        sigma = self.noise_multiplier
        require(0 <= sigma <= 1e6, "statistics.noise_multiplier", sigma, "between 0 and 1e6")


@dataclass(frozen=True, kw_only=True)
class Federation:
    """Name and size of the federation, and how long the coordinator waits for its holders.

    Attributes:
        min_holders: Fewest holders that a round may have; fewer end the run.
        answer_seconds: Longest time from a request to its answer; a round goes on without what
            comes later.
        grace_seconds: How long a round waits for a holder that is not connected, and how long the
            start waits for enrolled holders once `min_holders` are there.
    """

    name: str
    description: str = ""
    min_holders: int = 2
    answer_seconds: float = 3600.0
    grace_seconds: float = 60.0

    def __post_init__(self) -> None:
        ok = re.fullmatch(NAME, self.name) is not None
        require(ok, "federation.name", self.name, NAME_BOUND)
        require(self.min_holders >= 1, "federation.min_holders", self.min_holders, "at least 1")
        answer, grace = self.answer_seconds, self.grace_seconds
        require(1 <= answer <= 86_400, "federation.answer_seconds", answer, "between 1 and 86400")
        require(0 <= grace <= answer, "federation.grace_seconds", grace, "0 to answer_seconds")
