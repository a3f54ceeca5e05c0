"""What a model is: one decoder configuration for the paper's block and for Llama-family models, and how it reads.

Sizes follow docs/method.md section 4 (the published runs) and section 6 (the retrofit of a pre-trained model).
"""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ttt_docs.errors import UsageError

#: The fields that the identity of version 1 always holds: those of release 0.1.0. Never change these two lists.
_MODEL_FIELDS_1 = (
    "vocab_size blocks dim heads kv_heads head_dim mlp_dim prime_mlp_dim suffix_blocks prime_norm pre_norm post_norm "
    "qk_norm norm_eps rope_theta rope_scaling tied_head attention_bias max_positions window sinks bos_token_id "
    "eos_token_ids"
)
_READING_FIELDS_1 = "chunk window sinks learn inner_rule inner_lr inner_lr_factors inner_clip guard"


def _identity(config: BaseModel, always: str) -> dict[str, Any]:
    """The fields of `config` as JSON values: those named in `always`, and later ones that are not at their default."""
    values = config.model_dump(mode="json")
    later = config.model_dump(mode="json", exclude_defaults=True).keys()
    return {name: value for name, value in values.items() if name in always.split() or name in later}


class ModelConfig(BaseModel):
    """The architecture. Everything the weights' shapes depend on, and nothing about reading.

    The paper's model has `post_norm` and `qk_norm` on and window attention from the start; a Llama-family model has
    post-norms off and QK norm as that family has it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    vocab_size: int = Field(gt=0)
    blocks: int = Field(gt=0, description="number of decoder blocks")
    dim: int = Field(gt=0, description="width of the residual stream")
    heads: int = Field(gt=0, description="query heads")
    kv_heads: int = Field(gt=0, description="key/value heads (grouped-query attention when fewer than heads)")
    head_dim: int = Field(gt=0)
    mlp_dim: int = Field(gt=0, description="hidden width of the static MLP")
    prime_mlp_dim: int | None = Field(None, description="hidden width of the prime MLP; None: as the static MLP")
    suffix_blocks: int = Field(0, ge=0, description="how many of the last blocks carry a prime MLP (0: no TTT)")
    prime_norm: bool = Field(
        True, description="own pre-norm for the prime MLP; False: it shares the static MLP's (retrofit)"
    )
    post_norm: bool = False
    qk_norm: bool = False
    norm_eps: float = 1e-6
    rope_theta: float = 500_000.0
    rope_scaling: dict[str, float | str] | None = Field(
        None, description="Llama 3 frequency scaling, as the Hugging Face config names it"
    )
    tied_head: bool = True
    attention_bias: bool = Field(False, description="bias on the q, k, v projections (some Llama-family models)")
    max_positions: int = Field(8192, gt=0, description="length the model was trained for, in tokens")
    window: int | None = Field(None, description="window the model was trained with; None: full attention")
    sinks: int = Field(0, ge=0, description="first tokens kept for ever; 4 for a model trained with full attention")
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _of_release_010(cls, values: Any) -> Any:
        """Files of that release have a field `pre_norm`, which no model ever set to anything but true."""
        if isinstance(values, dict) and values.get("pre_norm") is True:
            return {name: value for name, value in values.items() if name != "pre_norm"}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        if self.heads % self.kv_heads:
            raise UsageError(f"{self.heads} query heads cannot share {self.kv_heads} key/value heads evenly")
        if self.suffix_blocks > self.blocks:
            raise UsageError(f"{self.suffix_blocks} suffix blocks do not fit a model of {self.blocks} blocks")
        if self.head_dim % 2:
            raise UsageError(f"RoPE rotates pairs: head_dim must be even, not {self.head_dim}")
        return self

    def identity(self) -> str:
        """What fingerprints hash of the configuration, version 1: JSON of everything but the name.

        A field that is added later counts only where it is not at its default, so that an update of the package keeps
        every fingerprint. A field that decides the numbers differently at its default needs a version 2.
        """
        fields = {"pre_norm": True, **_identity(self, _MODEL_FIELDS_1)}  # once a field; no model ever went without
        del fields["name"]
        return json.dumps(fields, sort_keys=True)

    @property
    def prefix_blocks(self) -> int:
        """Blocks below the first prime MLP: they never depend on the fast weights."""
        return self.blocks - self.suffix_blocks

    @property
    def suffix(self) -> range:
        """Indices of the suffix blocks."""
        return range(self.prefix_blocks, self.blocks)

    @property
    def prime_dim(self) -> int:
        return self.prime_mlp_dim or self.mlp_dim


InnerRule = Literal["sgd", "normalized", "balanced"]


class ReadingConfig(BaseModel):
    """How a document is read: the inner loop of docs/method.md section 3. Part of a memory's identity.

    `sgd` is the paper's rule, W <- W - lr * clip(g); `normalized` gives each matrix a step of norm `lr`,
    W <- W - lr * g / ||g|| (docs/method.md section 6: steadier for a model that was not meta-trained); `balanced`
    divides each entry of g by the root of its row's and its column's root mean square first (the factored second
    moments of Adafactor, arXiv 1804.04235, of one gradient, at half their power).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    chunk: int = Field(1024, gt=0, lt=2**31, description="tokens per update (b)")
    window: int = Field(2048, gt=0, lt=2**31, description="keys a query sees, itself included (k)")
    sinks: int = Field(0, ge=0)
    learn: bool = Field(True, description="False: read with the window only, never update")
    inner_rule: InnerRule = "sgd"
    inner_lr: float = Field(1.0, ge=0)
    inner_lr_factors: tuple[float, ...] = Field(
        (), description="learned: what inner_lr is multiplied by, block by block, or for w1, w2, w3 of each block"
    )
    inner_clip: float = Field(1.0, ge=0, description="global gradient norm limit for `sgd`; 0 switches it off")
    guard: float | None = Field(
        1.0,
        gt=0,
        description="an update is undone if it worsens the chunk's last tokens by more than this, in nats; None: never",
    )

    @model_validator(mode="after")
    def _consistent(self) -> ReadingConfig:
        if self.window < self.chunk:
            raise UsageError(
                f"window ({self.window}) must be at least the chunk ({self.chunk}): "
                "use a larger window= or a smaller chunk="
            )
        return self

    def identity(self) -> dict[str, Any]:
        """The fields that keys and memory files hold, version 1: those added later only where not at their default."""
        return _identity(self, _READING_FIELDS_1)


def _published(name: str, blocks: int, dim: int, heads: int, mlp: int, suffix: int) -> ModelConfig:
    return ModelConfig(
        name=name,
        vocab_size=128_256,
        blocks=blocks,
        dim=dim,
        heads=heads,
        kv_heads=heads,
        head_dim=dim // heads,
        mlp_dim=mlp,
        suffix_blocks=suffix,
        post_norm=True,
        qk_norm=True,
        window=8192,
        bos_token_id=128_000,
        eos_token_ids=(128_001,),
    )


#: The published sizes (docs/method.md section 4; MLP width with prime) and the default model before its retrofit.
CONFIGS: dict[str, ModelConfig] = {
    "125m": _published("125m", 12, 768, 12, 1664, 3),
    "350m": _published("350m", 24, 1024, 16, 2304, 6),
    "760m": _published("760m", 24, 1536, 16, 3328, 6),
    "1.3b": _published("1.3b", 24, 2048, 32, 4352, 6),
    "3b": _published("3b", 32, 2560, 32, 5632, 8),
    "smollm2-135m": ModelConfig(
        name="smollm2-135m",
        vocab_size=49_152,
        blocks=30,
        dim=576,
        heads=9,
        kv_heads=3,
        head_dim=64,
        mlp_dim=1536,
        norm_eps=1e-5,
        rope_theta=100_000.0,
        bos_token_id=1,
        eos_token_ids=(2,),
    ),
}
