"""What an adapter is: its kind, its sizes, where it goes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ldm.models.adapters.timestep_rank import TimestepRank

if TYPE_CHECKING:
    from peft import PeftConfig

Kind = Literal["lora", "dora", "rslora", "loha", "lokr", "oft"]


@dataclass(frozen=True)
class AdapterSettings:
    """An adapter of up to several networks; the text encoders' may have another rank and alpha.

    kind: lora (arXiv 2106.09685), dora (arXiv 2402.09353), rslora (scaled by the rank's root, arXiv
    2312.03732), loha (arXiv 2108.06098), lokr (arXiv 2212.10650) or oft (arXiv 2306.07280, which
    turns a layer's input in blocks of `rank` and has no alpha). alpha: None for the rank, which
    scales by 1 (rslora: by its root). dropout: of the input (lora), of rows of what is added (loha,
    lokr), of blocks (oft). conv, targets: as `find_layers` takes them. timestep_rank, of lora and
    rslora alone: see `TimestepRank`; timesteps: how many the base has.
    """

    kind: Kind = "lora"
    rank: int = 8
    alpha: float | None = None
    text_encoder_rank: int | None = None  # None: rank
    text_encoder_alpha: float | None = None  # None: alpha
    dropout: float = 0.0
    conv: bool = False
    targets: Sequence[str] = ()
    timestep_rank: int | None = None  # the smallest; None: the whole rank at all timesteps
    timestep_rank_power: float = 1.0
    timesteps: int = 1000

    def sizes(self, network: str) -> tuple[int, float]:
        """Rank and alpha in the network of this name: "unet", "text_encoder", ..."""
        rank, alpha = self.rank, self.alpha
        if network.startswith("text_encoder"):
            rank = self.text_encoder_rank or rank
            alpha = self.text_encoder_alpha or alpha
        return rank, float(rank if alpha is None else alpha)

    def timestep_rank_of(self, network: str) -> TimestepRank | None:
        """Which components take part when in the network of this name: of the UNet, if asked."""
        if self.timestep_rank is None or network != "unet":
            return None
        power = self.timestep_rank_power
        return TimestepRank(self.rank, self.timestep_rank, power, self.timesteps)

    def peft_config(self, network: str, layers: Sequence[str]) -> "PeftConfig":
        """What peft needs to know of the adapter in one network, of the layers of these names."""
        from peft import LoHaConfig, LoKrConfig, LoraConfig, OFTConfig

        (rank, alpha), names = self.sizes(network), list(layers)
        if self.kind == "loha":
            return LoHaConfig(r=rank, alpha=alpha, rank_dropout=self.dropout, target_modules=names)
        if self.kind == "lokr":
            return LoKrConfig(r=rank, alpha=alpha, rank_dropout=self.dropout, target_modules=names)
        if self.kind == "oft":  # exactly orthogonal: the Neumann series is an approximation
            return OFTConfig(
                r=0,
                oft_block_size=rank,
                module_dropout=self.dropout,
                use_cayley_neumann=False,
                target_modules=names,
            )
        return LoraConfig(
            r=rank,
            lora_alpha=alpha,
            lora_dropout=self.dropout,
            use_dora=self.kind == "dora",
            use_rslora=self.kind == "rslora",
            target_modules=names,
        )
