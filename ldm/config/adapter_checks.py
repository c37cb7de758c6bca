"""What of the section `adapter` cannot go together."""

from collections.abc import Iterator

from ldm.config.schema import Config


def adapter_problems(config: Config) -> Iterator[str]:
    """One line per impossible combination of keys of the section `adapter`."""
    adapter = config.adapter
    if adapter is None:
        return
    if adapter.kind == "oft":
        if adapter.conv:
            yield "adapter.conv=true: oft is for linear layers alone; take another adapter.kind"
        for key in ("alpha", "text_encoder_alpha"):
            if getattr(adapter, key) is not None:
                yield f"adapter.{key}={getattr(adapter, key)}: oft has no alpha; leave it null"
    if adapter.frozen == "half" and config.training.precision == "fp32":
        yield (
            "adapter.frozen=half: the base's weights in half precision want to be computed with in "
            "it; set training.precision=bf16-mixed (or 16-mixed), or adapter.frozen=full"
        )
    if not config.model.train_text_encoder:
        for key in ("text_encoder_rank", "text_encoder_alpha"):
            if getattr(adapter, key) is not None:
                yield (
                    f"adapter.{key}={getattr(adapter, key)}: nothing uses it where "
                    "model.train_text_encoder=false; leave it null"
                )
