"""T5 as its checkpoints leave it: the start token that some do not name, and generation that they do not decide."""

from transformers import GenerationConfig, T5ForConditionalGeneration


def name_start_token(model: T5ForConditionalGeneration) -> None:
    """Give the config a `decoder_start_token_id` if it has none.

    It is that of generation_config.json, else the pad token: so the published T5 models were trained.
    """
    if getattr(model.config, "decoder_start_token_id", None) is None:
        start_id = getattr(model.generation_config, "decoder_start_token_id", None)
        model.config.decoder_start_token_id = model.config.pad_token_id if start_id is None else start_id


def forget_generation_settings(model: T5ForConditionalGeneration) -> None:
    """Drop what generation_config.json says: `generate` takes from it whatever a call does not set itself.

    A checkpoint made for summaries would else bring its beams, lengths and penalties to answers.
    """
    model.generation_config = GenerationConfig()


def greedy(*, start_id: int, end_id: int, pad_id: int, **limits: int | bool) -> GenerationConfig:
    """The most likely token after the most likely token, and nothing else.

    Args:
        limits: on the length, and what `generate` returns, by its own names.
    """
    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        decoder_start_token_id=start_id,
        eos_token_id=end_id,
        pad_token_id=pad_id,
        **limits,
    )
